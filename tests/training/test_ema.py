"""The average of the weights."""

import contextlib

import torch
from training_runs import contents, same

from checkpoints.checkpoint import load_model
from DiffusionModel import DiffusionModel
from training.ema import Ema


def test_the_average_is_separate_from_the_weights_and_complete(tiny_run):
    checkpoint = contents(tiny_run)
    live = {name.removeprefix("unet."): value for name, value in checkpoint["state_dict"].items()}
    assert checkpoint["ema"]["weights"].keys() == live.keys()
    assert not same(checkpoint["ema"]["weights"], live)
    model, raw = (
        load_model(tiny_run).model,
        load_model(tiny_run, ema=False).model,
    )
    assert same(dict(model.unet.named_parameters()), checkpoint["ema"]["weights"])
    assert same(dict(raw.unet.named_parameters()), live)
    assert not model.training


def test_ema_follows_its_formula_and_forgets_the_initialization():
    """With weights that jump from 0 to 1 after the start, 5,000 updates leave nothing of the 0; a
    fixed 0.9999 leaves 61%."""
    model = DiffusionModel(width=4, mults=(1,), attention=(), blocks=1, size=4, depth=1)
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    ema, reference = Ema(), 0.0
    ema.on_fit_start(None, model)
    for p in model.parameters():
        torch.nn.init.ones_(p)
    for n in range(5000):
        ema.on_step_end(None, model)
        d = min(0.9999, (1 + n) / (10 + n))
        reference = d * reference + (1 - d)
    assert all(abs(float(w.mean()) - reference) < 1e-4 for w in ema.weights.values())
    assert reference > 0.9999
    assert all((p == 1).all() for p in model.parameters())


def test_ema_applied_gives_the_weights_back_after_an_error():
    model = DiffusionModel(width=4, mults=(1,), attention=(), blocks=1, size=4, depth=1)
    ema = Ema()
    ema.on_fit_start(None, model)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    live = {name: p.detach().clone() for name, p in model.unet.named_parameters()}
    with contextlib.suppress(RuntimeError), ema.applied(model):
        assert same(dict(model.unet.named_parameters()), ema.weights)
        assert not model.training
        raise RuntimeError
    assert same(dict(model.unet.named_parameters()), live)
    assert model.training
