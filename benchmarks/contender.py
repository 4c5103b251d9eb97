"""One way to train and to sample, in a process of its own that `speed.py` steps, so that several
take turns on one machine.

    python benchmarks/contender.py ours --network laptop --batch 32

It reads commands from standard input and answers each with a line of JSON:

    train 10      {"seconds": ..}: ten steps of its training loop, with all that the loop does
    bare 10       ten times forward, backward and optimizer of the same network, and nothing else
    sample 20     one batch in 20 steps of its sampler
    about 0       {"parameters", "flops" of a training step, "memory" (peak, bytes), "version"}

All train on the same images (3x32x32, in memory) and have no dropout. `ours` is train.py itself,
with Lightning, average of the weights and progress; the others are the loops of their training
scripts without what loads files. `convolutions` and `matmul` are what the machine can do: those of
our network, alone, and one large one.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from peers import diffusers, lucidrains
from torch import Tensor
from turns import Contender, has_bf16, images, still

import train
from DiffusionModel import DiffusionModel
from runtime import devices
from runtime.compiling import compile_network
from sampling.plan import plan_sampling
from sampling.sample_sets import sample_batch
from training import fit
from training.ema import Ema
from training.progress import Progress
from Unet import Unet

T, NEVER = 1000, 10**9


def unet(network: str) -> dict[str, Any]:
    """The arguments of this project's network, as the preset has them."""
    names = ("width", "mults", "attention", "blocks", "patch")
    return {name: value for name, value in train.PRESETS[network].items() if name in names}


def ours(args: argparse.Namespace, precision: str = "auto", sampler: str = "unipc") -> None:
    """train.py as it is, held up before each step; sampling as in evaluate.py, from the averaged
    weights."""
    precise = devices.pick_precision(args.device, precision)

    class Stepped(Progress):
        contender: Contender | None = None

        def on_train_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            if not self.contender:
                ema = next(c for c in trainer.callbacks if isinstance(c, Ema))
                # a model of its own, because it is compiled in another mode
                model = DiffusionModel(**pl_module.hparams).to(pl_module.device).eval()
                if args.device == "cuda":
                    compile_network(model, "reduce-overhead", args.batch, precise)

                def draw(steps: int) -> None:
                    model.unet.load_state_dict(ema.weights)
                    plan = plan_sampling(model, sampler, steps, precision=precise)
                    sample_batch(model, plan, range(args.batch), seed=0)

                self.contender = Contender(
                    args,
                    pl_module.unet,
                    still(pl_module.unet),
                    draw,
                    bf16=precise != "32-true",
                )
            self.contender.before_step()

    fit.Progress = Stepped
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        flags = (
            f"--dataset shapes --preset {args.network} --dropout 0 --batch-size {args.batch} "
            f"--max-steps {NEVER} --val-every {NEVER} --save-every {NEVER} --max-time 1000h "
            f"--precision {precision} --device {args.device} --run-dir {folder} {args.flags}"
        )
        sys.exit(train.main(flags.split()))


def plain(args: argparse.Namespace) -> None:
    """Our network as a tutorial has it: float32, Algorithm 1 and the ancestral steps of Algorithm
    2 in a loop."""
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
            x = model.denoise_sample(x, T * i // steps, T * (i - 1) // steps)

    Contender(args, model.unet, optimizer, draw, step).run()


def convolutions(args: argparse.Namespace) -> None:
    """Those of our network, forward and backward in bf16 or what the hardware has, one after
    another, and nothing between them."""
    net = Unet(**unet(args.network)).to(args.device)
    dtype = torch.bfloat16 if has_bf16(args.device) else torch.float32
    found: list[tuple[Any, Any]] = []
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(
                lambda layer, inputs, _: found.append((layer, inputs[0].shape))
            )
    x = torch.randn(args.batch, 3, 32, 32, device=args.device)
    with torch.no_grad():
        net(x, torch.zeros(args.batch, device=args.device))
    work, flops = [], 0.0
    for layer, shape in found:

        def new(shape: Any, needed: bool = True) -> Tensor:
            values = torch.randn(shape, device=args.device, dtype=dtype)
            return values.contiguous(memory_format=torch.channels_last).requires_grad_(needed)

        h, w = new(shape, layer is not net.conv_in), new(layer.weight.shape)
        out = F.conv2d(h, w, stride=layer.stride, padding=layer.padding)
        flops += 2 * out.numel() * w[0].numel() * (3 if h.requires_grad else 2)
        work.append((layer, h, w, torch.randn_like(out)))

    def step() -> None:
        for layer, h, w, upstream in work:
            needed = (h, w) if h.requires_grad else (w,)
            torch.autograd.grad(
                F.conv2d(h, w, stride=layer.stride, padding=layer.padding), needed, upstream
            )

    Contender(args, None, None, lambda _: None, step, flops=flops).run()


def matmul(args: argparse.Namespace) -> None:
    """A large product in bf16 or what the hardware has."""
    n = 8192 if args.device == "cuda" else 2048
    dtype = torch.bfloat16 if has_bf16(args.device) else torch.float32
    a, b = (torch.randn(n, n, device=args.device, dtype=dtype) for _ in range(2))
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("--network", choices=("paper", "laptop"), default="laptop", help="(laptop)")
    parser.add_argument("--batch", type=int, default=32, help="(32)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(cpu)")
    parser.add_argument("--flags", default="", help="more flags for train.py, of ours")
    chosen = parser.parse_args()
    CONTENDERS[chosen.name](chosen)
