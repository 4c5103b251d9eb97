"""Muon, and the learning rate as a function of the step."""

import copy
import math

import pytest
import torch
from models import NETWORK, model, seeded

from diffusion.optimizers import Muon, is_hidden, learning_rate_factor, orthogonalize
from diffusion.settings import ModelSettings
from DiffusionModel import DiffusionModel


def muon_of(parameter: torch.Tensor, rest: torch.Tensor | None = None, lr: float = 0.1) -> Muon:
    others = [torch.nn.Parameter(torch.zeros(3))] if rest is None else [rest]
    return Muon([parameter], others, lr=0.01, hidden_lr=lr)


@pytest.mark.parametrize("shape", [(2, 6, 20), (2, 20, 6), (1, 8, 8)])
def test_singular_values_become_about_one_and_their_directions_stay(shape):
    matrices = torch.randn(*shape, generator=seeded())
    found = orthogonalize(matrices)
    values = torch.linalg.svdvals(found)
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    U, _, V = torch.linalg.svd(matrices, full_matrices=False)
    inside = U.mT @ found @ V.mT  # diagonal, if the singular vectors have not changed
    assert torch.allclose(inside, torch.diag_embed(inside.diagonal(dim1=1, dim2=2)), atol=1e-4)


def test_the_iterations_are_those_of_newton_and_schulz_written_out():
    matrices = torch.randn(2, 6, 20, generator=seeded(), dtype=torch.float64)
    X = matrices / matrices.norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        G = X @ X.mT
        X = 3.4445 * X - 4.7750 * G @ X + 2.0315 * G @ G @ X
    assert torch.allclose(orthogonalize(matrices), X.float(), atol=1e-4)


def test_a_step_is_that_of_the_paper_written_out():
    """Nesterov's momentum, made orthogonal, times the rate and sqrt(max(1, rows / columns))."""
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(12, 2, 2, 2))
    optimizer, momentum = muon_of(kernel), torch.zeros(12, 8)
    for _ in range(3):
        before, kernel.grad = kernel.detach().clone(), torch.randn_like(kernel)
        gradient = kernel.grad.reshape(12, 8)
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        direction = orthogonalize((0.05 * gradient + 0.95 * momentum)[None])[0]
        expected = before.reshape(12, 8) - 0.1 * math.sqrt(12 / 8) * direction
        assert torch.allclose(kernel.detach().reshape(12, 8), expected, atol=1e-5)


def test_the_rest_is_updated_by_adam():
    rest, twin = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    optimizer = muon_of(torch.nn.Parameter(torch.randn(3, 4)), rest)
    adam = torch.optim.Adam([twin], lr=0.01, fused=True)
    for step in range(3):
        rest.grad = twin.grad = torch.arange(5.0) - step
        optimizer.step()
        adam.step()
    assert torch.equal(rest, twin)


def test_gradients_are_divided_by_their_scale_and_change_nothing_if_not_finite():
    kernel, twin = (torch.nn.Parameter(torch.randn(4, 4, generator=seeded())) for _ in range(2))
    optimizer, plain = muon_of(kernel), muon_of(twin)
    for gradient, scale, bad in ((1.0, 2.0, 0.0), (math.nan, 1.0, 1.0), (3.0, 2.0, 0.0)):
        before = kernel.detach().clone()
        kernel.grad = torch.randn(4, 4, generator=seeded(1)) * gradient * scale
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(bad)
        optimizer.step()
        if bad:
            assert torch.equal(kernel, before)
        else:
            twin.grad = torch.randn(4, 4, generator=seeded(1)) * gradient
            plain.step()
            assert torch.allclose(kernel, twin, atol=1e-5)


def test_its_state_can_be_saved_and_loaded():
    kernels = [torch.nn.Parameter(torch.ones(4, 6)) for _ in range(2)]
    first, second = map(muon_of, kernels)
    for step in range(4):
        kernels[0].grad = torch.randn(4, 6, generator=seeded(step))
        first.step()
        if step == 1:
            second.load_state_dict(copy.deepcopy(first.state_dict()))
            kernels[1].data.copy_(kernels[0])
        if step > 1:
            kernels[1].grad = kernels[0].grad.clone()
            second.step()
    assert torch.equal(*kernels)


def test_hidden_weights_are_those_between_the_ends():
    m = DiffusionModel(T=20, beta_large=0.2, optimizer="muon", classes=3, **NETWORK)
    hidden = {name for name, p in m.unet.named_parameters() if is_hidden(name, p)}
    ends = ("conv_in", "conv_out", "time.", "label", ".embed.", "norm", "bias")
    assert not [name for name in hidden if any(end in name for end in ends)]
    for part in ("conv1.weight", "conv2.weight", "shortcut.weight", "qkv.weight", "out.weight"):
        assert any(name.endswith(part) for name in hidden), part
    groups = m.configure_optimizers(1)["optimizer"].param_groups
    assert [len(group["params"]) for group in groups] == [
        len(hidden),
        len(list(m.parameters())) - len(hidden),
    ]


def test_muon_learns():
    m = model(optimizer="muon", lr=2e-3, warmup=0, parameterization="v")
    optimizer = m.configure_optimizers(1)["optimizer"]
    x = torch.ones(16, 1, 8, 8) * torch.linspace(-1, 1, 16)[:, None, None, None]
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        loss = m.get_loss(x, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


@pytest.mark.parametrize(
    ("schedule", "cooldown", "expected"),
    [
        ("constant", 1.0, {0: 0.1, 4: 0.5, 9: 1.0, 50: 1.0, 99: 1.0}),
        ("linear", 1.0, {0: 0.1, 9: 0.91, 50: 0.5, 99: 0.01}),
        ("linear", 0.2, {9: 1.0, 80: 1.0, 90: 0.5, 99: 0.05}),
        ("cosine", 0.5, {50: 1.0, 75: 0.5, 99: 0.000987}),
        ("linear", 0.0, {50: 1.0, 99: 1.0}),
    ],
)
def test_the_rate_rises_and_falls(schedule, cooldown, expected):
    settings = ModelSettings(warmup=10, lr_schedule=schedule, cooldown=cooldown)
    found = {step: learning_rate_factor(settings, 100, step) for step in expected}
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_end_of_the_schedule_is_that_of_the_run():
    settings = ModelSettings(warmup=0, lr_schedule="linear")
    assert learning_rate_factor(settings, 200, 100) == 0.5
    assert learning_rate_factor(settings, 100, 100) == 0
    assert learning_rate_factor(settings, 100, 150) == 0
