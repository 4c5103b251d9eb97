"""Gradient accumulation: a step in micro-batches is the same step."""

import pytest
import torch
from conftest import TINY
from models import NETWORK, gradients
from training_runs import fit, losses

import train
from DiffusionModel import DiffusionModel
from training.batches import micro_batches


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"weighting": "min-snr", "parameterization": "v"},
        {"t_sampling": "stratified"},
        {"augment": 0.5},
        {"classes": 3},
    ],
    ids=str,
)
def test_a_batch_in_parts_is_the_batch(choices):
    model = DiffusionModel(T=20, beta_large=0.2, **choices, **NETWORK)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    batch, found = (torch.rand(12, 3, 8, 8) * 2 - 1, torch.arange(12) % 3), {}
    for parts in (1, 2, 3, 12):
        model.zero_grad()
        total = torch.zeros(())
        for micro_batch in micro_batches(*batch, parts):
            loss = model.get_loss(micro_batch, 5) / parts
            loss.backward()
            total += loss.detach()
        found[parts] = [total, *gradients(model)]
    assert torch.equal(found[1][0], model.get_loss(batch, 5).detach())
    for parts in (2, 3, 12):
        for whole, summed in zip(found[1], found[parts], strict=True):
            torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-5)


def test_a_run_in_parts_is_the_run(tiny_data, tmp_path):
    for name, options in {
        "whole": (),
        "parts": ("--accumulate", 4, "--gradient-checkpointing"),
    }.items():
        assert fit(tiny_data, tmp_path / name, "--max-steps", 20, *options) == 0
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert whole.keys() == parts.keys() == set(range(1, 21))
    assert all(abs(float(whole[step]) - float(parts[step])) < 1e-5 for step in whole)


def test_parts_that_do_not_divide_are_refused(refused, tiny_data, tmp_path):
    said = refused(
        train.main,
        "--dataset",
        tiny_data,
        "--run-dir",
        tmp_path / "run",
        *TINY,
        "--accumulate",
        3,
        "--max-steps",
        2,
    )
    assert (
        "--batch-size 8 cannot be split into --accumulate 3 equal parts: choose another number"
        in said
    )


def test_graphs_and_parts_are_refused_together(refused, tiny_data, tmp_path):
    words = ["--dataset", tiny_data, "--run-dir", tmp_path / "run", *TINY]
    words += ["--accumulate", 2, "--compile", "reduce-overhead", "--max-steps", 2]
    assert "give --compile default" in refused(train.main, *words)
