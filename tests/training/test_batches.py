"""Gradient accumulation: a step in micro-batches is the same step."""

import pytest
import torch
from conftest import TINY
from models import EVERYTHING, NETWORK, gradients
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
        EVERYTHING,
    ],
    ids=lambda choices: ",".join(choices) or "paper",
)
def test_a_step_in_micro_batches_is_that_of_the_whole_batch(choices):
    model = DiffusionModel(T=20, beta_large=0.2, **choices, **NETWORK)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    batch, found = (torch.rand(12, 3, 8, 8) * 2 - 1, torch.arange(12) % 3), {}
    for count in (1, 2, 3, 12):
        model.zero_grad()
        total = torch.zeros(())
        for micro_batch in micro_batches(*batch, count):
            loss = model.get_loss(micro_batch, 5) / count
            loss.backward()
            total += loss.detach()
        found[count] = [total, *gradients(model)]
    assert torch.equal(found[1][0], model.get_loss(batch, 5).detach())
    for count in (2, 3, 12):
        for whole, summed in zip(found[1], found[count], strict=True):
            torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-5)


def test_a_run_with_accumulation_has_the_losses_of_one_without(tiny_data, tmp_path):
    for name, options in {
        "whole": (),
        "accumulated": ("--accumulate", 4, "--gradient-checkpointing"),
    }.items():
        assert fit(tiny_data, tmp_path / name, "--max-steps", 20, *options) == 0
    whole, accumulated = losses(tmp_path / "whole"), losses(tmp_path / "accumulated")
    assert whole.keys() == accumulated.keys() == set(range(1, 21))
    assert all(abs(float(whole[step]) - float(accumulated[step])) < 1e-5 for step in whole)


def test_accumulation_that_does_not_divide_the_batch_is_refused(refused, tiny_data, tmp_path):
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


def test_accumulation_with_cuda_graphs_is_refused(refused, tiny_data, tmp_path):
    words = ["--dataset", tiny_data, "--run-dir", tmp_path / "run", *TINY]
    words += ["--accumulate", 2, "--compile", "reduce-overhead", "--max-steps", 2]
    assert "give --compile default" in refused(train.main, *words)
