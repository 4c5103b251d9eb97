"""Tiny models that several tests share."""

import torch

from DiffusionModel import DiffusionModel

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


def spread_out(m: DiffusionModel) -> DiffusionModel:
    """Zero-initialized layers hide what is behind them: give every weight a value."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in m.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return m


def conditional(**settings) -> DiffusionModel:
    return spread_out(model(classes=3, parameterization="v", **settings))
