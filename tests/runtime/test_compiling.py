"""torch.compile: what is compiled, and that it computes the same."""

import os
import shutil
import sys
import time

import numpy as np
import pytest
import torch
from models import NETWORK, gradients
from training_runs import fit, losses

import evaluate
import Inference
from checkpoints.checkpoint_file import read_checkpoint_file
from checkpoints.run_dir import newest_checkpoint
from DiffusionModel import DiffusionModel
from evaluation import bits_per_dim, evaluation, preparation
from runtime.compiling import compile_network, keep_compiled_code
from sampling import sample_sets
from training import fit as fit_module


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Start and end without compiled code: torch compiles the same function only a few times in a
    process, and then runs it eagerly."""
    forget_compiled_code()
    yield
    forget_compiled_code()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A cache folder of the user, empty. The environment is restored afterwards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    return tmp_path / "cache" / "torchinductor"


def forget_compiled_code():
    if "torch._dynamo" in sys.modules:
        torch.compiler.set_stance("default")
        torch._dynamo.reset()


@pytest.fixture
def compiled_calls(monkeypatch):
    """The mode and batch size of every call of compiled code. Dynamo traces and guards as usual.
    The graph is run as it was traced, because a real backend would take a minute."""
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
    """Seven steps with two validations and two previews; three calls to warm up."""
    options = ["--max-steps", 7, "--compile", "reduce-overhead"]
    assert fit(tiny_data, tmp_path / "run", *options) == 0
    assert compiled_calls == [("reduce-overhead", 8)] * (3 + 7)


def test_where_it_cannot_compile_it_says_so_and_trains(tiny_data, tmp_path, no_compiler, capsys):
    assert fit(tiny_data, tmp_path / "run", "--max-steps", 2, "--compile", "default") == 0
    assert "--compile default does not work here (" in capsys.readouterr().err
    assert len(losses(tmp_path / "run")) == 2


def test_compiled_code_is_kept_in_the_users_cache_folder(cache):
    keep_compiled_code()
    assert cache.is_dir()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache)


def test_a_cache_folder_from_the_environment_is_used(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"


def test_without_a_writable_cache_folder_torchs_default_is_used(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_compiled_code()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_compiling_does_not_count_towards_max_time(tiny_data, tmp_path, monkeypatch):
    """It takes 1000 seconds, by a clock that is put forward."""
    ahead, monotonic = [0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + ahead[0])
    monkeypatch.setattr(fit_module, "compile_network", lambda *_: ahead.__setitem__(0, 1000))
    assert fit(tiny_data, tmp_path, "--max-steps", 3, "--max-time", "500s") == 0
    checkpoint = read_checkpoint_file(newest_checkpoint(tmp_path))
    assert ahead == [1000]
    assert checkpoint["global_step"] == 3
    assert checkpoint["elapsed"] < 500


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
    assert compile_network(model, "default", 4, "32")
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


def test_samples_made_without_a_compiler_are_stored_as_uncompiled_ones(
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
