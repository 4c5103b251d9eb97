"""One way to train and to sample, in a process of its own that `speed.py` steps, so that several take turns on one machine.

    python benchmarks/contender.py ours --network laptop --batch 32     # then a line of JSON for each line that is typed:

    train 10      {"seconds": ..}: ten steps of its training loop, with all that it does beside the network
    bare 10       ten times forward, backward and optimizer of the same network, and nothing else
    sample 20     one batch in 20 steps of its sampler
    about 0       {"parameters", "flops" of a training step, "memory" (peak, bytes), "version"}

All train on the same images (3x32x32, in memory) and have no dropout. `ours` is train.py itself, with Lightning, average of the weights
and progress; the others are the loops of their training scripts without what loads files. `convolutions` and `matmul` are what the machine
can do: those of our network, alone, and one large one.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import Callbacks
import Devices
import Samples
import train

NETWORKS = {  # of the other projects: width, multiples, residual blocks a level, the level with attention
    "paper": (128, (1, 2, 2, 2), 2, 1),
    "laptop": (32, (1, 2, 2), 1, 2),
}
T, NEVER = 1000, 10**9
ANSWERS = sys.stdout  # train.py has words of its own


class Contender:
    """net(x, t) -> Tensor; optimizer: of its weights. draw(n): a batch of samples in so many steps. step: a training step, or None where
    another loop asks `before_step`. package: that is to be named. flops: of a step, where there is no network to count them in."""

    def __init__(self, args: argparse.Namespace, net: Any, optimizer: Any, draw: Callable[[int], Any],
                 step: Callable[[], Any] | None = None, bf16: bool = False, channels_last: bool = False, package: str = "",
                 flops: float | None = None):
        self.args, self.net, self.optimizer, self.draw = args, net, optimizer, draw
        self.step, self.package, self.flops = step, package, flops
        self.autocast = (lambda: torch.autocast(args.device, torch.bfloat16)) if bf16 else contextlib.nullcontext
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.left, self.began = 0, 0.0

    def before_step(self) -> None:
        """Answer what is typed, and return when another training step is wanted."""
        while self.left == 0:
            if self.began:
                say(seconds=seconds_since(self.began, self.args.device))
            what, count = (sys.stdin.readline() or "exit 0").split()
            self.began = 0.0
            if what == "exit":
                sys.exit()
            elif what == "train":
                self.left, self.began = int(count), time.perf_counter()
            elif what == "about":
                say(**self.about())
            else:
                began = time.perf_counter()
                self.bare(int(count)) if what == "bare" else self.draw(int(count))
                say(seconds=seconds_since(began, self.args.device))
        self.left -= 1

    def run(self) -> None:
        assert self.step
        while True:
            self.before_step()
            self.step()

    def bare(self, count: int) -> None:
        if self.flops is not None and self.step:  # the machine's: it has no loop
            for _ in range(count):
                self.step()
            return
        x = torch.randn(self.args.batch, 3, 32, 32, device=self.args.device).contiguous(memory_format=self.format)
        t = torch.arange(self.args.batch, device=self.args.device)
        for _ in range(count):
            with self.autocast():
                loss = F.mse_loss(self.net(x, t).float(), x)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.optimizer.zero_grad()

    def about(self) -> dict[str, Any]:
        if self.flops is None:
            with FlopCounterMode(display=False) as counter:
                self.bare(1)
            self.flops = counter.get_total_flops()
        return {"parameters": sum(p.numel() for p in self.net.parameters()) if self.net else 0, "flops": self.flops,
                "memory": Devices.peak_memory(self.args.device), "version": version(self.package) if self.package else ""}


def unet(network: str) -> dict[str, Any]:
    """The arguments of this project's network, as the preset has them."""
    names = ("width", "mults", "attention", "blocks", "patch")
    return {name: value for name, value in train.PRESETS[network].items() if name in names}


def say(**found: Any) -> None:
    print(json.dumps(found), file=ANSWERS, flush=True)


def seconds_since(began: float, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def still(net: Any) -> torch.optim.Optimizer:
    """An optimizer that does all its work and moves nothing, so that a network that is being trained can be timed."""
    return torch.optim.Adam(net.parameters(), lr=0.0, fused=True)


def ours(args: argparse.Namespace, precision: str = "auto", sampler: str = "unipc") -> None:
    """train.py as it is, held up before each step; sampling as in evaluate.py, from the averaged weights."""
    precise = Devices.pick_precision(args.device, precision)

    class Stepped(Callbacks.Progress):
        contender: Contender | None = None

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if not self.contender:
                ema = next(c for c in trainer.callbacks if isinstance(c, Callbacks.Ema))

                def draw(steps: int) -> None:
                    with ema.applied(pl_module):
                        Samples.drawn(pl_module, Samples.plan(pl_module, sampler, steps, precision=precise), range(args.batch), 0)
                self.contender = Contender(args, pl_module.unet, still(pl_module.unet), draw, bf16=precise != "32-true")
            self.contender.before_step()

    Callbacks.Progress = Stepped  # Run.fit makes one
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        sys.exit(train.main(["--dataset", "shapes", "--preset", args.network, "--dropout", "0", "--batch-size", str(args.batch),
                             "--max-steps", str(NEVER), "--val-every", str(NEVER), "--save-every", str(NEVER), "--max-time", "1000h",
                             "--precision", precision, "--device", args.device, "--run-dir", folder, *args.flags.split()]))


def plain(args: argparse.Namespace) -> None:
    """Our network as a tutorial has it: float32, Algorithm 1 and the ancestral steps of Algorithm 2 in a loop."""
    from DiffusionModel import DiffusionModel
    model = DiffusionModel(**unet(args.network))
    model.to(args.device)
    optimizer, x_0 = torch.optim.Adam(model.unet.parameters(), lr=2e-4), images(args)

    def step() -> None:
        t, eps = torch.randint(1, T + 1, (args.batch,), device=args.device), torch.randn_like(x_0)
        loss = F.mse_loss(model(model.q_sample(x_0, t, eps), t), eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    @torch.no_grad()
    def draw(steps: int) -> None:
        x = torch.randn_like(x_0)
        for i in range(steps, 0, -1):
            t, s = (torch.full((args.batch,), T * j // steps, device=args.device) for j in (i, i - 1))
            x = model.denoise_sample(x, t, s)
    Contender(args, model.unet, optimizer, draw, step).run()


def diffusers(args: argparse.Namespace, best: bool = False) -> None:
    """The steps of its examples/unconditional_image_generation/train_unconditional.py with its defaults; `best`: mixed_precision bf16
    and channels_last. Sampled by its DDPMPipeline."""
    from accelerate import Accelerator
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel  # type: ignore[reportPrivateImportUsage]
    from diffusers.optimization import get_scheduler
    width, mults, blocks, level = NETWORKS[args.network]
    kinds = [i == level for i in range(len(mults))]
    net: Any = UNet2DModel(sample_size=32, in_channels=3, out_channels=3, layers_per_block=blocks, dropout=0.0,
                           block_out_channels=tuple(width * m for m in mults), norm_num_groups=min(32, width // 4),
                           down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in kinds),
                           up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(kinds)), attention_head_dim=None)
    if best:
        net.to(memory_format=torch.channels_last)
    accelerator = Accelerator(mixed_precision="bf16" if best else "no", cpu=args.device == "cpu")
    scheduler = DDPMScheduler(num_train_timesteps=T)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    warmup = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000)
    net, optimizer, warmup = accelerator.prepare(net, optimizer, warmup)
    x_0 = images(args).contiguous(memory_format=torch.channels_last if best else torch.contiguous_format)

    def step() -> None:
        noise = torch.randn_like(x_0)
        t = torch.randint(0, T, (args.batch,), device=args.device).long()
        with accelerator.accumulate(net):
            loss = F.mse_loss(net(scheduler.add_noise(x_0, noise, t), t).sample.float(), noise.float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            warmup.step()
            optimizer.zero_grad()
        loss.detach().item()

    pipeline: Any = DDPMPipeline(accelerator.unwrap_model(net), scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def draw(steps: int) -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=best):
            pipeline(batch_size=args.batch, num_inference_steps=steps, output_type="np")
    Contender(args, Output(net), still(net), draw, step, bf16=best, package="diffusers", channels_last=best).run()


class Output(torch.nn.Module):
    """diffusers' network as one that gives a tensor."""

    def __init__(self, net: Any):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t).sample


def lucidrains(args: argparse.Namespace) -> None:
    """The steps of its Trainer with its defaults, and its DDIM sampling."""
    from accelerate import Accelerator
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA
    width, mults, _, _ = NETWORKS[args.network]
    diffusion: Any = GaussianDiffusion(Unet(width, dim_mults=mults), image_size=32, timesteps=T)
    accelerator = Accelerator(mixed_precision="no", cpu=args.device == "cpu")
    diffusion.to(accelerator.device)
    optimizer: Any = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10).to(accelerator.device)
    model, optimizer = accelerator.prepare(diffusion, optimizer)
    x_0 = (images(args) + 1) / 2

    def step() -> None:
        with accelerator.autocast():
            loss = model(x_0)
        loss.item()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    def draw(steps: int) -> None:
        diffusion.sampling_timesteps = steps
        with contextlib.redirect_stderr(io.StringIO()):
            diffusion.ddim_sample((args.batch, 3, 32, 32))
    Contender(args, diffusion.model, still(diffusion.model), torch.no_grad()(draw), step, package="denoising-diffusion-pytorch").run()


def images(args: argparse.Namespace) -> Tensor:
    """One batch (B,3,32,32) of the built-in shapes, in [-1,1]."""
    from Dataset import DiffSet, to_float
    return to_float(DiffSet(True, "shapes", "data", 32).images[:args.batch]).to(args.device)


def convolutions(args: argparse.Namespace) -> None:
    """Those of our network, forward and backward in bf16, one after another, and nothing between them."""
    from Unet import Unet
    net = Unet(**unet(args.network)).to(args.device)
    found: list[tuple[Any, Any]] = []
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda layer, inputs, _: found.append((layer, inputs[0].shape)))
    x = torch.randn(args.batch, 3, 32, 32, device=args.device)
    with torch.no_grad():
        net(x, torch.zeros(args.batch, device=args.device))
    work, flops = [], 0.0
    for layer, shape in found:
        def new(shape: Any, needed: bool = True) -> Tensor:
            values = torch.randn(shape, device=args.device, dtype=torch.bfloat16)
            return values.contiguous(memory_format=torch.channels_last).requires_grad_(needed)
        h, w = new(shape, layer is not net.conv_in), new(layer.weight.shape)
        out = F.conv2d(h, w, stride=layer.stride, padding=layer.padding)
        flops += 2 * out.numel() * w[0].numel() * (3 if h.requires_grad else 2)
        work.append((layer, h, w, torch.randn_like(out)))

    def step() -> None:
        for layer, h, w, upstream in work:
            needed = (h, w) if h.requires_grad else (w,)
            torch.autograd.grad(F.conv2d(h, w, stride=layer.stride, padding=layer.padding), needed, upstream)
    Contender(args, None, None, lambda _: None, step, flops=flops).run()


def matmul(args: argparse.Namespace) -> None:
    """A large product in bf16."""
    n = 8192 if args.device == "cuda" else 2048
    a, b = (torch.randn(n, n, device=args.device, dtype=torch.bfloat16) for _ in range(2))
    Contender(args, None, None, lambda _: None, lambda: a @ b, flops=2.0 * n**3).run()


CONTENDERS: dict[str, Callable[[argparse.Namespace], None]] = {
    "ours": ours,
    "plain": plain,
    "diffusers": diffusers,
    "diffusers-best": lambda args: diffusers(args, best=True),
    "lucidrains": lucidrains,
    "convolutions": convolutions,
    "matmul": matmul,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("--network", choices=NETWORKS, default="laptop", help="(laptop)")
    parser.add_argument("--batch", type=int, default=32, help="(32)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(cpu)")
    parser.add_argument("--flags", default="", help="more flags for train.py, of ours")
    chosen = parser.parse_args()
    CONTENDERS[chosen.name](chosen)
