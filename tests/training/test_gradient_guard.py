"""Clipping the gradient. Skipped steps are tested in test_divergence.py."""

import pytest
import torch
from models import NETWORK, gradients

from DiffusionModel import DiffusionModel
from training.gradient_guard import GradientGuard


@pytest.mark.parametrize("fused", [("cpu",), ()])
@pytest.mark.parametrize("clip", [1e-3, 1e3, 0.0])
def test_the_gradients_norm_is_clipped(clip, fused, monkeypatch):
    """Adam's step hardly depends on the gradient's scale, so the momentum is compared: after one
    step it is a tenth of the clipped gradient."""
    monkeypatch.setattr("training.gradient_guard.FUSED", fused)
    model = DiffusionModel(T=20, beta_large=0.2, lr=0.0, **NETWORK)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    optimizer = model.configure_optimizers(1)["optimizer"]
    model.get_loss(torch.linspace(-1, 1, 4 * 192).reshape(4, 3, 8, 8), 0).backward()
    before = gradients(model)
    norm = float(torch.cat([g.flatten() for g in before]).norm())
    assert 1e-3 < norm < 1e3
    GradientGuard(clip, attempt=0).on_before_optimizer_step(None, model, optimizer)
    optimizer.step()
    for gradient, parameter in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(
            optimizer.state[parameter]["exp_avg"],
            0.1 * gradient * (min(1, clip / norm) if clip else 1),
        )
