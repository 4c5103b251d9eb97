"""How a step is computed changes its time and memory, and not what is learned: parts, gradient checkpointing, torch.compile."""

import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import TINY
from training_runs import contents, fit, losses

import evaluate
import Inference
import train
from DiffusionModel import DiffusionModel
from evaluation import bits_per_dim, evaluation, preparation
from runtime.compiling import compile_network
from sampling import sample_sets
from training.batches import micro_batches
from training.gradient_guard import GradientGuard
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
    assert "--batch-size 8 does not divide into --accumulate 3 parts: choose another number" in said


def kept_bytes(net: Unet, recompute: bool) -> tuple[int, list[torch.Tensor]]:
    """What is kept between forward and backward, and the gradient."""
    kept = 0

    def count(values: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += values.numel() * values.element_size()
        return values

    net.recompute_activations(recompute)
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
    monkeypatch.setattr("training.gradient_guard.FUSED", fused)
    model = DiffusionModel(T=20, beta_large=0.2, lr=0.0, **NETWORK)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    optimizer = model.configure_optimizers()["optimizer"]
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


# ---- torch.compile ---------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Compiled code and the compiler's stance do not survive a test."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.set_stance("default")
        torch._dynamo.reset()


@pytest.fixture
def compiled_calls(monkeypatch):
    """The mode and batch size of every call that compiled code answers. Dynamo traces and guards as
    usual; the traced graph is run as it is, for a real backend would take a minute."""
    calls, real = [], torch.compile

    def compile_traced(function, mode):
        def backend(graph, example_inputs):
            def run(*inputs):
                images = next(
                    one
                    for one in inputs
                    if getattr(one, "ndim", 0) == 4 and one.shape[1:] == (3, 8, 8)
                )
                calls.append((mode, len(images)))
                return graph.forward(*inputs)

            return run

        return real(function, backend=backend)

    monkeypatch.setattr(torch, "compile", compile_traced)
    return calls


@pytest.fixture
def no_compiler(monkeypatch):
    """Compiling fails."""
    real = torch.compile

    def broken(graph, example_inputs):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda function, mode: real(function, backend=broken))


def sampled(run, out, *flags):
    words = ["--ckpt", run, "--out", out, "--steps", 4, "--save-steps", 0, *flags]
    assert Inference.main([str(word) for word in words]) == 0
    return np.load(out / "samples.npz")["arr_0"].astype(int)


def evaluated(run, data, root, *flags):
    words = ["--ckpt", run, "--dataset", data, "--data-root", root, "--num", 8, "--seeds", "0,1"]
    words += ["--steps", 4, "--features", "classifier", *flags]
    assert evaluate.main([str(word) for word in words]) == 0


def test_training_steps_are_compiled_and_validation_and_previews_are_not(
    tiny_data, tmp_path, compiled_calls
):
    """Seven steps with a validation and a preview; three calls to warm up."""
    options = ["--max-steps", 7, "--compile", "reduce-overhead"]
    assert fit(tiny_data, tmp_path / "run", *options) == 0
    assert compiled_calls == [("reduce-overhead", 8)] * (3 + 7)


def test_where_it_cannot_compile_it_says_so_and_trains(tiny_data, tmp_path, no_compiler, capsys):
    assert fit(tiny_data, tmp_path / "run", "--max-steps", 2, "--compile", "default") == 0
    assert "--compile default does not work here (" in capsys.readouterr().err
    assert len(losses(tmp_path / "run")) == 2


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_the_compiled_network_is_the_network():
    model = DiffusionModel(**{**NETWORK, "mults": (1,), "attention": ()}, class_names=())
    x_0 = torch.rand(4, 3, 8, 8) * 2 - 1
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.train()
    model.get_loss(x_0, 0).backward()
    expected, names = gradients(model), list(model.state_dict())
    assert compile_network(model, "default", 4, "32-true")
    assert list(model.state_dict()) == names
    assert all(p.grad is None for p in model.parameters())
    with torch.compiler.set_stance("fail_on_recompile"):  # the warm-up was like training
        model.get_loss(x_0, 0).backward()
    for a, b in zip(expected, gradients(model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_whole_batches_are_sampled_by_compiled_code(tiny_run, tmp_path, compiled_calls):
    flags = ["--num", 7, "--batch-size", 3]
    plain = sampled(tiny_run, tmp_path / "plain", *flags)
    assert not compiled_calls
    fast = sampled(tiny_run, tmp_path / "fast", *flags, "--compile", "reduce-overhead")
    # three calls to warm up; the last image alone is sampled eagerly
    assert compiled_calls == [("reduce-overhead", 3)] * (3 + 2 * 4)
    assert np.array_equal(plain, fast)


def test_guidance_doubles_the_batch_that_is_compiled(conditional_run, tmp_path, compiled_calls):
    flags = ["--num", 3, "--class", 1, "--guidance", 2, "--compile", "default"]
    sampled(conditional_run, tmp_path, *flags)
    assert compiled_calls == [("default", 6)] * (3 + 4)


def test_sample_sets_are_compiled_and_the_likelihood_is_not(
    tiny_run, tiny_data, tmp_path, compiled_calls, monkeypatch
):
    monkeypatch.setattr(preparation, "load_feature_extractor", lambda *_: None)
    measured = []

    def measure(prepared):
        test_set = prepared.real_images.test_set
        measured.append(bits_per_dim.variational_bound(prepared.model, test_set, 4))

    monkeypatch.setattr(evaluation, "measure", measure)
    monkeypatch.setattr(sample_sets, "IMAGES_PER_FILE", 4)  # and so the most in a batch
    run = shutil.copytree(tiny_run, tmp_path / "run")
    evaluated(run, tiny_data, tmp_path, "--bound", 0, "--batch-size", 4, "--compile", "default")
    # each set begins with a step to warm up
    assert compiled_calls == [("default", 4)] * (3 + 2 * (1 + 2 * 4))
    assert len(measured) == 1


def test_samples_made_without_a_compiler_are_those_of_the_plain_network(
    tiny_run, tiny_data, tmp_path, no_compiler, capsys, monkeypatch
):
    monkeypatch.setattr(preparation, "load_feature_extractor", lambda *_: None)
    monkeypatch.setattr(evaluation, "measure", lambda *_: None)
    run = shutil.copytree(tiny_run, tmp_path / "run")
    evaluated(run, tiny_data, tmp_path, "--bound", 0, "--compile", "default")
    assert capsys.readouterr().err.count("does not work here") == 1  # once for both seeds
    (folder,) = (run / "evaluation").glob("unipc-4-*")
    evaluated(run, tiny_data, tmp_path, "--bound", 0)
    assert list((run / "evaluation").glob("unipc-4-*")) == [folder]


def test_where_it_cannot_compile_it_says_so_and_samples(tiny_run, tmp_path, no_compiler, capsys):
    plain = sampled(tiny_run, tmp_path / "plain", "--num", 2)
    flags = ["--num", 2, "--compile", "max-autotune"]
    assert np.array_equal(sampled(tiny_run, tmp_path / "out", *flags), plain)
    assert "--compile max-autotune does not work here (" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_samples_are_the_samples(tmp_path, tiny_data):
    assert fit(tiny_data, tmp_path / "run", "--max-steps", 3, "--mults", 1, "--attention", "") == 0
    flags = ["--num", 4, "--batch-size", 4]
    plain = sampled(tmp_path / "run", tmp_path / "plain", *flags)
    fast = sampled(tmp_path / "run", tmp_path / "fast", *flags, "--compile", "default")
    assert np.abs(plain - fast).max() <= 1


def test_graphs_and_parts_are_refused_together(refused, tiny_data, tmp_path):
    words = ["--dataset", tiny_data, "--run-dir", tmp_path / "run", *TINY]
    words += ["--accumulate", 2, "--compile", "reduce-overhead", "--max-steps", 2]
    assert "give --compile default" in refused(train.main, *words)
