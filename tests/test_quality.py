"""The default sampler is as good in 20 evaluations as the paper's in 1000, on a small model
trained here."""

import pytest
import torch

import Inference
from Dataset import Batches, DiffSet
from DiffusionModel import DiffusionModel
from sampling import plan
from sampling.noise import Noise
from sampling.samplers import sample
from sampling.time_grid import time_grid

STEPS, COUNT = 600, 300


def distance(images: torch.Tensor, real: torch.Tensor) -> float:
    """Frechet distance in pixels between two sets of images, both float (N,C,H,W)."""
    a, b = (x.flatten(1).double() for x in (images, real))
    between = torch.linalg.eigvals(torch.cov(a.T) @ torch.cov(b.T)).real.clamp(min=0).sqrt().sum()
    return float(
        ((a.mean(0) - b.mean(0)) ** 2).sum()
        + torch.cov(a.T).trace()
        + torch.cov(b.T).trace()
        - 2 * between
    )


@pytest.fixture(scope="module")
def trained():
    """A model of 8x8 gray shapes that predicts v, with the laptop preset's schedule and variance
    and averaged weights, and its training images."""
    torch.manual_seed(0)
    data = DiffSet(True, "shapes", image_size=8)
    data.images = data.images.float().mean(1, keepdim=True).round().byte()
    m = DiffusionModel(
        schedule="cosine",
        parameterization="v",
        variance="small",
        depth=1,
        size=8,
        width=16,
        mults=(1, 2),
        attention=(),
        blocks=1,
    )
    optimizer, step = m.configure_optimizers(STEPS)["optimizer"], 0
    average = {name: p.detach().clone() for name, p in m.named_parameters()}
    while step < STEPS:
        for batch in Batches(data, 64, seed=step):
            loss = m.get_loss(batch, step)
            optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 100)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for name, p in m.named_parameters():
                average[name].lerp_(p.detach(), 1 - min(0.9999, (1 + step) / (10 + step)))
            step += 1
            if step == STEPS:
                break
    m.load_state_dict(average)
    return m.eval().requires_grad_(False), data.images.float() / 127.5 - 1


def samples(m: DiffusionModel, sampler: str, steps: int, count: int = COUNT) -> torch.Tensor:
    noise = Noise(0, range(count), (1, 8, 8))
    *_, (_, x, _) = sample(sampler, m, noise(), time_grid(m, steps, m.T), noise, "small")
    return x.clamp(-1, 1)


@pytest.mark.slow
def test_the_default_sampler_is_no_worse_in_20_steps_than_1000_ancestral_ones(trained):
    m, real = trained
    assert (
        Inference.build_parser().parse_args(["--ckpt", "runs/x"]).sampler is None
    )  # the default of plan_sampling
    assert plan.default_steps(plan.DEFAULT_SAMPLER, 1000, autoguidance=False) == 20
    found = distance(samples(m, plan.DEFAULT_SAMPLER, plan.DEFAULT_EVALUATIONS), real)
    ancestral = distance(samples(m, "ddpm", 1000), real)
    floor, noise = (
        distance(real[:COUNT], real),
        distance(torch.randn(COUNT, 1, 8, 8).clamp(-1, 1), real),
    )
    print(
        f"{plan.DEFAULT_SAMPLER} in {plan.DEFAULT_EVALUATIONS}: {found:.3f}; "
        f"ddpm in 1000: {ancestral:.3f}; real {floor:.3f}, noise {noise:.3f}"
    )
    assert plan.DEFAULT_EVALUATIONS == 20
    assert found <= 1.05 * ancestral
    assert ancestral < noise / 5  # the model has learned something
