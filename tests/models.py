"""Tiny models that several tests share."""

import torch

from diffusion.draws import Draws
from DiffusionModel import DiffusionModel
from runtime.randomness import Purpose

SMALL = dict(width=8, mults=(1,), attention=(), blocks=1, size=8, depth=1)


def model(**settings) -> DiffusionModel:
    torch.manual_seed(0)
    return DiffusionModel(**{**SMALL, **settings}).eval()


class Predicts(DiffusionModel):
    """A model whose network gives a fixed output."""

    output: torch.Tensor

    def forward(self, x, t, *_):
        return self.output


def predicts(output, **settings) -> DiffusionModel:
    m = Predicts(**{**SMALL, **settings})
    m.output = output
    return m


def perturbed(m: DiffusionModel) -> DiffusionModel:
    """Add noise to all weights, because zero-initialized layers would hide the other layers."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in m.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return m


def conditional(**settings) -> DiffusionModel:
    return perturbed(model(classes=3, parameterization="v", **settings))


# Schedule, prediction, variance, loss, augmentation and labels, all different from the paper's.
EVERYTHING = dict(
    schedule="cosine",
    zero_terminal_snr=True,
    parameterization="v",
    variance="learned",
    weighting="edm",
    t_sampling="stratified",
    augment=0.5,
    classes=3,
    label_dropout=0.5,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain_errors(m: DiffusionModel, x_0: torch.Tensor, step: int) -> tuple:
    """t (B,) and squared errors (B,) of a training step, by Algorithm 1 written out."""
    draws = Draws(x_0, (m.seed, Purpose.TRAIN, step, 0))
    t, eps = draws.times("uniform", m._ratio[1:]), draws.normal(m.unet.depth)
    output = m(m.q_sample(x_0, t, eps), t)[:, : x_0.shape[1]]
    return t, ((output - m.target(x_0, eps, t)) ** 2).mean((1, 2, 3))


def learned(**settings) -> DiffusionModel:
    return perturbed(model(variance="learned", **settings))


# A network with all its parts, as keyword arguments of Unet.
NETWORK = {"width": 8, "mults": (1, 2), "attention": (4,), "blocks": 1, "size": 8}


def gradients(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]
