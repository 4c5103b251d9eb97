"""Parts of gpu.py: what must hold on a GPU.

precision   the relative error of the network's output, against float32 on the CPU
batch-size  16 images sampled in batches of 16, 7 and 1: how many of their values differ
resume      two runs with one seed, and one that is stopped and resumed, without compiling
"""

import gpu_part
import torch
from gpu_part import Options, Results
from torch import Tensor

import train
from checkpoints.checkpoint import load_model
from DiffusionModel import DiffusionModel
from runtime.devices import tf32
from sampling.plan import SamplingPlan, plan_sampling
from sampling.sample_sets import sample_batch

PRECISIONS = ("32", "tf32", "bf16")
MAX_ERROR = {"32": 1e-5, "tf32": 5e-3, "bf16": 5e-2}
MAX_LEVELS = 2  # of 255, between batch sizes in float32
BATCHES = (16, 7, 1)
STEPS = 6  # before the run is resumed; every run has twice as many in total


def random_model(options: Options) -> DiffusionModel:
    """The paper's network with all weights random, also those that training initializes to 0."""
    run, machine = options.set_up("--preset paper --batch-size 16")
    torch.manual_seed(0)
    for weight in run.model.unet.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return run.model.to(machine.device).eval()


@torch.no_grad()
def output(model: DiffusionModel, x: Tensor, t: Tensor, precision: str) -> Tensor:
    device = model.device
    with (
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        tf32(precision == "tf32"),
    ):
        return model.unet(x.to(device), t.to(device)).float().cpu()


def precision(options: Options) -> Results:
    model = random_model(options)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, *model.unet.shape, generator=generator)
    t = torch.randint(0, model.T, (16,), generator=generator)
    found = {name: output(model, x, t, name) for name in PRECISIONS}
    exact = output(model.cpu(), x, t, "32")
    for name, value in found.items():
        error = float((value - exact).norm() / exact.norm())
        yield {"precision": name, "relative_error": error, "passed": error <= MAX_ERROR[name]}


def batch_size(options: Options) -> Results:
    model = random_model(options)
    for name in PRECISIONS:
        plan = plan_sampling(model, steps=5, precision=name)
        whole = sample_in_batches(model, plan, BATCHES[0])
        for size in BATCHES[1:]:
            difference = (sample_in_batches(model, plan, size) - whole).abs()
            levels = int(difference.max())
            yield {
                "precision": name,
                "batch_size": size,
                "values_that_differ": float((difference > 0).float().mean()),
                "levels": levels,
                "passed": name != "32" or levels <= MAX_LEVELS,
            }


def sample_in_batches(model: DiffusionModel, plan: SamplingPlan, size: int) -> Tensor:
    """The 16 images (16,C,H,W), as integers."""
    firsts = range(0, BATCHES[0], size)
    parts = [range(first, min(first + size, BATCHES[0])) for first in firsts]
    return torch.cat([sample_batch(model, plan, part, 0) for part in parts]).int()


def resume(options: Options) -> Results:
    """Compare the weights of a run with those of a repeated and a resumed one.

    The learning rate is constant, because the other schedules depend on --max-steps.
    """
    flags = f"--dataset shapes --preset laptop --compile off --device {options.device}".split()
    flags += ["--lr-schedule", "constant", "--dropout", "0.1", "--val-images", "16"]
    flags += gpu_part.TINY if options.rehearse else []

    def weights(name: str, *steps: int) -> dict[str, Tensor]:
        folder = options.out / f"resume-{name}"
        for i, count in enumerate(steps):
            words = [*flags, "--run-dir", str(folder), "--max-steps", str(count)]
            words += ["--resume", "auto" if i else "none"]
            assert train.main(words) == 0
        return load_model(folder).model.state_dict()

    whole = weights("whole", 2 * STEPS)
    for name, steps in (("again", (2 * STEPS,)), ("resumed", (STEPS, 2 * STEPS))):
        other = weights(name, *steps)
        equal = all(torch.equal(whole[key], other[key]) for key in whole)
        yield {"run": name, "equal_weights": equal, "passed": equal}


if __name__ == "__main__":
    gpu_part.main({"precision": precision, "batch-size": batch_size, "resume": resume})
