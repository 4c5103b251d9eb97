"""How a step is computed changes its time and memory, and not what is learned: parts, gradient checkpointing, torch.compile."""

import shutil

import numpy as np
import pytest
import torch
from conftest import TINY
from training_runs import contents, fit, losses

import evaluate
import Inference
import train
from DiffusionModel import DiffusionModel
from evaluation import evaluation
from runtime import devices
from sampling import sample_sets
from Unet import Unet, attend

NETWORK = {"width": 8, "mults": (1, 2), "attention": (4,), "blocks": 1, "size": 8}


def trained(**network) -> Unet:
    """A network whose last layers are not zero."""
    torch.manual_seed(0)
    net = Unet(**{**NETWORK, **network})
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


def gradients(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


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
        model.accumulate = parts
        model.zero_grad()
        loss = model.loss_in_parts(batch, 5)
        loss.backward()
        found[parts] = [loss.detach(), *gradients(model)]
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
    assert "--batch-size 8 does not divide into --accumulate 3 parts: choose another number" in said


def kept_bytes(net: Unet, recompute: bool) -> tuple[int, list[torch.Tensor]]:
    """What is kept between forward and backward, and the gradient."""
    kept = 0

    def count(values: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += values.numel() * values.element_size()
        return values

    net.recompute = recompute
    net.zero_grad()
    torch.manual_seed(1)  # dropout
    with torch.autograd.graph.saved_tensors_hooks(count, lambda values: values):
        out = net(torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8), torch.tensor([3, 9]))
        kept_forward = kept
        out.square().sum().backward()
    return kept_forward, gradients(net)


def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradient():
    net = trained(blocks=2, dropout=0.3)
    (everything, expected), (less, found) = kept_bytes(net, False), kept_bytes(net, True)
    assert less < everything / 2
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("fused", [("cpu",), ()])
@pytest.mark.parametrize("clip", [1e-3, 1e3, 0.0])
def test_the_gradients_norm_is_clipped(clip, fused, monkeypatch):
    """Adam divides by its own mean, so that clipping shows in the momentum: after one step that is a tenth of the clipped gradient."""
    monkeypatch.setattr("DiffusionModel.FUSED", fused)
    model = DiffusionModel(T=20, beta_large=0.2, lr=0.0, **NETWORK)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    optimizer = model.configure_optimizers()["optimizer"]
    model.get_loss(torch.linspace(-1, 1, 4 * 192).reshape(4, 3, 8, 8), 0).backward()
    before = gradients(model)
    norm = float(torch.cat([g.flatten() for g in before]).norm())
    assert 1e-3 < norm < 1e3
    model.configure_gradient_clipping(optimizer, clip or None)
    optimizer.step()
    for gradient, parameter in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(
            optimizer.state[parameter]["exp_avg"],
            0.1 * gradient * (min(1, clip / norm) if clip else 1),
        )


@pytest.mark.parametrize("places", [4, 1024, 1025])
def test_attention_is_the_same_written_out_and_fused(places):
    q, k, v = torch.randn(3, 2, places, 8, generator=torch.Generator().manual_seed(0)).double()
    weights = torch.einsum("bnc,bmc->bnm", q, k).div(8**0.5).exp()
    torch.testing.assert_close(attend(q, k, v), weights @ v / weights.sum(dim=2, keepdim=True))


def test_the_speedrun_trains(tiny_data, tmp_path):
    assert fit(tiny_data, tmp_path / "run", "--preset", "speedrun", "--max-steps", 3) == 0
    settings = contents(tmp_path / "run")["hyper_parameters"]
    assert (settings["parameterization"], settings["augment"], settings["dropout"]) == (
        "v",
        0.12,
        0.13,
    )


def test_where_it_cannot_compile_it_says_so_and_trains(tiny_data, tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no compiler here\nand many more lines")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    assert fit(tiny_data, tmp_path / "run", "--max-steps", 2, "--compile", "default") == 0
    assert (
        "--compile default does not work here (no compiler here): going on without"
        in capsys.readouterr().err
    )
    assert len(losses(tmp_path / "run")) == 2


def test_what_is_compiled_is_trained_and_not_sampled(tiny_data, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(
        torch,
        "compile",
        lambda forward, mode: lambda *inputs: (called.append(mode), forward(*inputs))[1],
    )
    assert (
        fit(tiny_data, tmp_path / "run", "--max-steps", 7, "--compile", "reduce-overhead") == 0
    )  # validates and previews once
    assert called == ["reduce-overhead"] * (3 + 7)  # three to try it


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_the_compiled_network_is_the_network():
    model = DiffusionModel(**{**NETWORK, "mults": (1,), "attention": (), "classes": 3})
    model.unet = net = trained(mults=(1,), attention=(), classes=3)
    x, t, y = torch.randn(4, 3, 8, 8), torch.arange(4), torch.tensor([0, 1, 2, 3])
    names = list(net.state_dict())
    compiled, refusal = devices.compiled(net, "default", model.example(4), "32-true")
    assert not refusal
    assert compiled is not None
    assert list(net.state_dict()) == names
    assert all(p.grad is None for p in net.parameters())
    with torch.compiler.set_stance(
        "fail_on_recompile"
    ):  # the example was like what training gives it
        found = compiled(x, t, y, None)
    found.square().sum().backward()
    fast = gradients(net)
    net.zero_grad()
    expected = net(x, t, y)
    expected.square().sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(fast, gradients(net), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.fixture
def translations(monkeypatch):
    """Modes and batch sizes with which the network that torch.compile is said to have translated is called."""
    called = []
    monkeypatch.setattr(
        torch,
        "compile",
        lambda forward, mode: (
            lambda x, *rest: (called.append((mode, len(x))), forward(x, *rest))[1]
        ),
    )
    return called


def sampled(run, out, *flags):
    assert (
        Inference.main(
            [
                str(word)
                for word in ("--ckpt", run, "--out", out, "--steps", 4, "--save-steps", 0, *flags)
            ]
        )
        == 0
    )
    return np.load(out / "samples.npz")["arr_0"].astype(int)


def test_whole_batches_are_sampled_by_what_is_compiled(tiny_run, tmp_path, translations):
    plain = sampled(tiny_run, tmp_path / "plain", "--num", 7, "--batch-size", 3)
    assert not translations
    fast = sampled(
        tiny_run, tmp_path / "fast", "--num", 7, "--batch-size", 3, "--compile", "reduce-overhead"
    )
    assert translations == [("reduce-overhead", 3)] * (
        3 + 2 * 4
    )  # three to try it; the last image alone is the network's own
    assert np.array_equal(plain, fast)


def test_guidance_doubles_the_batch_that_is_compiled(conditional_run, tmp_path, translations):
    sampled(
        conditional_run, tmp_path, "--num", 3, "--class", 1, "--guidance", 2, "--compile", "default"
    )
    assert translations == [("default", 6)] * (3 + 4)


def test_samples_to_measure_are_compiled_where_some_are_wanted(
    tiny_run, tiny_data, tmp_path, translations, monkeypatch
):
    monkeypatch.setattr(evaluation, "load_feature_extractor", lambda *_: None)
    measured = []
    monkeypatch.setattr(
        evaluation, "measure", lambda args, prepared: measured.append(dict(prepared.model.compiled))
    )
    monkeypatch.setattr(sample_sets, "IMAGES_PER_FILE", 4)  # a file's, and so the most in a batch
    run = shutil.copytree(tiny_run, tmp_path / "run")
    words = [
        str(word)
        for word in (
            "--ckpt",
            run,
            "--dataset",
            tiny_data,
            "--data-root",
            tmp_path,
            "--bound",
            0,
            "--num",
            8,
            "--seeds",
            "0,1",
            "--steps",
            4,
            "--features",
            "classifier",
            "--compile",
            "default",
        )
    ]
    assert evaluate.main(words) == 0
    assert translations == [("default", 4)] * (
        3 + 2 * (1 + 2 * 4)
    )  # each set begins with a step to warm up
    assert measured == [{}]  # what is compiled is for sampling alone
    assert evaluate.main(words) == 0
    assert len(translations) == 21
    assert evaluate.main(words[:-2]) == 0
    assert (
        len(list((run / "evaluation").glob("unipc-4-*"))) == 2
    )  # they are other images, if only by rounding


def test_samples_that_were_not_compiled_are_not_said_to_be(
    tiny_run, tiny_data, tmp_path, monkeypatch, capsys
):
    def broken(*_, **__):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    monkeypatch.setattr(evaluation, "load_feature_extractor", lambda *_: None)
    monkeypatch.setattr(evaluation, "measure", lambda *_: None)
    run = shutil.copytree(tiny_run, tmp_path / "run")
    words = [
        str(word)
        for word in (
            "--ckpt",
            run,
            "--dataset",
            tiny_data,
            "--data-root",
            tmp_path,
            "--bound",
            0,
            "--num",
            8,
            "--seeds",
            "0,1",
            "--steps",
            4,
            "--features",
            "classifier",
        )
    ]
    assert evaluate.main([*words, "--compile", "default"]) == 0
    assert capsys.readouterr().err.count("does not work here") == 1  # for both seeds
    (folder,) = (run / "evaluation").glob("unipc-4-*")
    assert evaluate.main(words) == 0
    assert list((run / "evaluation").glob("unipc-4-*")) == [folder]


def test_where_it_cannot_compile_it_says_so_and_samples(tiny_run, tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no compiler here")

    plain = sampled(tiny_run, tmp_path / "plain", "--num", 2)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    assert np.array_equal(
        sampled(tiny_run, tmp_path / "out", "--num", 2, "--compile", "max-autotune"), plain
    )
    assert (
        "--compile max-autotune does not work here (no compiler here): going on without"
        in capsys.readouterr().err
    )


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_samples_are_the_samples(tmp_path, tiny_data):
    assert fit(tiny_data, tmp_path / "run", "--max-steps", 3, "--mults", 1, "--attention", "") == 0
    plain = sampled(tmp_path / "run", tmp_path / "plain", "--num", 4, "--batch-size", 4)
    with torch.compiler.set_stance(
        "fail_on_recompile"
    ):  # what it was tried with is like what sampling gives it
        fast = sampled(
            tmp_path / "run",
            tmp_path / "fast",
            "--num",
            4,
            "--batch-size",
            4,
            "--compile",
            "default",
        )
    assert np.abs(plain - fast).max() <= 1


def test_graphs_and_parts_are_refused_together(refused, tiny_data, tmp_path):
    said = refused(
        train.main,
        "--dataset",
        tiny_data,
        "--run-dir",
        tmp_path / "run",
        *TINY,
        "--accumulate",
        2,
        "--compile",
        "reduce-overhead",
        "--max-steps",
        2,
    )
    assert "give --compile default" in said
