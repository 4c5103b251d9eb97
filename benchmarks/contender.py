"""One way to train and to sample, as a process that `speed.py` controls over its standard input.

    python benchmarks/contender.py ours --network laptop --batch 32

It answers each of these lines with a line of JSON:

    train 10      {"seconds": ..}: ten steps of its whole training loop
    bare 10       {"seconds": ..}: ten times forward, backward and optimizer step, and nothing else
    sample 20     {"seconds": ..}: one batch in 20 steps of its sampler
    about 0       {"parameters", "flops" of a training step, "memory" (peak, bytes), "version"}

All train on the built-in shapes (3x32x32, in memory) without dropout. `ours` is train.py itself,
with Lightning, EMA and the progress line; the others are the loops of their training scripts, on
one batch, without file loading. `convolutions` and `matmul` show the limits of the machine: they
run only the convolutions of our network, and one large matrix product.
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
from turns import Contender, has_bf16, images, zero_rate_adam

import train
import training.trainer
from DiffusionModel import DiffusionModel
from runtime.compiling import compile_network
from runtime.devices import Precision, pick_precision
from sampling.plan import plan_sampling
from sampling.sample_sets import sample_batch
from training.ema import Ema
from training.presets import PRESETS
from training.progress import Progress
from Unet import Unet

T, NEVER = 1000, 10**9


# flags of train.py with which it never stops, saves or validates by itself
FLAGS = [
    # the same network and optimizer as the others
    *("--dataset", "shapes", "--dropout", "0", "--no-class-conditional", "--optimizer", "adam"),
    "--no-film",
    *("--max-steps", str(NEVER), "--val-every", str(NEVER), "--save-every", str(NEVER)),
    *("--max-time", "1000h"),
]


def unet(network: str) -> dict[str, Any]:
    """The arguments of this project's network in the preset."""
    names = ("width", "mults", "attention", "blocks", "patch")
    return {name: value for name, value in PRESETS[network].items() if name in names}


def sampler_of(
    trained: DiffusionModel, ema: Ema, args: argparse.Namespace, sampler: str, precision: Precision
) -> Callable[[int], None]:
    """Return a function that samples one batch with the averaged weights in n steps."""
    # a separate model, because it is compiled in another mode
    model = DiffusionModel(**trained.hparams).to(trained.device).eval()
    if args.device == "cuda":
        compile_network(model, "reduce-overhead", args.batch, precision)

    def draw(steps: int) -> None:
        model.unet.load_state_dict(ema.weights)
        plan = plan_sampling(model, sampler, steps, precision=precision)
        sample_batch(model, plan, range(args.batch), seed=0)

    return draw


def ours(args: argparse.Namespace, precision: str = "auto", sampler: str = "unipc") -> None:
    """train.py, which waits for a command before each step; sampling as in evaluate.py."""
    chosen = pick_precision(args.device, precision)

    class WaitingProgress(Progress):
        contender: Contender | None = None

        def on_train_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            if not self.contender:
                ema = next(c for c in trainer.callbacks if isinstance(c, Ema))
                self.contender = Contender(
                    args,
                    pl_module.unet,
                    zero_rate_adam(pl_module.unet),
                    sampler_of(pl_module, ema, args, sampler, chosen),
                    bf16=chosen == "bf16",
                )
            self.contender.before_step()

    training.trainer.Progress = WaitingProgress
    machine = ["--preset", args.network, "--batch-size", str(args.batch)]
    machine += ["--precision", precision, "--device", args.device]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        sys.exit(train.main([*FLAGS, *machine, "--run-dir", folder, *args.flags.split()]))


def plain(args: argparse.Namespace) -> None:
    """Our network as in a tutorial: float32, Algorithm 1 and Algorithm 2 as loops."""
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


def convolution_inputs(net: Unet, args: argparse.Namespace) -> list[tuple[Any, torch.Size]]:
    """The convolutions of a network with their input shapes, in the order of the forward pass. On
    a CPU those of `Upsample` are left out, because they run as transposed convolutions."""
    inputs: list[tuple[Any, torch.Size]] = []
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(
                lambda layer, arguments, _: inputs.append((layer, arguments[0].shape))
            )
    x = torch.randn(args.batch, 3, 32, 32, device=args.device)
    with torch.no_grad():
        net(x, torch.zeros(args.batch, device=args.device))
    return inputs


def convolutions(args: argparse.Namespace) -> None:
    """Only the convolutions of our network, forward and backward, in the fast precision."""
    net = Unet(**unet(args.network)).to(args.device)
    dtype = fast_dtype(args.device)
    work, flops = [], 0.0

    def random(shape: Any, needs_grad: bool = True) -> Tensor:
        values = torch.randn(shape, device=args.device, dtype=dtype)
        values = values.contiguous(memory_format=torch.channels_last)
        return values.requires_grad_(needs_grad)

    for layer, shape in convolution_inputs(net, args):
        h, w = random(shape, layer is not net.conv_in), random(layer.weight.shape)
        out = F.conv2d(h, w, stride=layer.stride, padding=layer.padding)
        flops += 2 * out.numel() * w[0].numel() * (3 if h.requires_grad else 2)
        work.append((layer, h, w, torch.randn_like(out)))

    def step() -> None:
        for layer, h, w, upstream in work:
            inputs = (h, w) if h.requires_grad else (w,)
            out = F.conv2d(h, w, stride=layer.stride, padding=layer.padding)
            torch.autograd.grad(out, inputs, upstream)

    Contender(args, None, None, lambda _: None, step, flops=flops).run()


def fast_dtype(device: str) -> torch.dtype:
    """bf16 if the hardware supports it, else float32."""
    return torch.bfloat16 if has_bf16(device) else torch.float32


def matmul(args: argparse.Namespace) -> None:
    """One large matrix product in the fast precision."""
    n, dtype = 8192 if args.device == "cuda" else 2048, fast_dtype(args.device)
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
    parser.add_argument("--flags", default="", help="more flags for train.py, if name is ours")
    chosen = parser.parse_args()
    CONTENDERS[chosen.name](chosen)
