"""The early averages used for autoguidance."""

import pytest
import torch
from training_runs import contents, fit, same

import convert
import Inference
from checkpoints.checkpoint import load_model
from checkpoints.early_average import guiding_step, half_precision, is_early_step
from sampling import sample_sets
from sampling.guidance import choose_guidance
from sampling.plan import plan_sampling
from sampling.sample_sets import folder_name


def test_the_guiding_step_is_a_quarter_to_a_half_of_the_training():
    assert [guiding_step(step) for step in (32, 63, 64, 1500, 3000, 4096)] == [
        16,
        16,
        32,
        512,
        1024,
        2048,
    ]
    for step in range(32, 5000, 7):
        assert step / 4 < guiding_step(step) <= step / 2
        assert is_early_step(guiding_step(step))
    assert not any(map(is_early_step, (0, 1, 8, 17, 96)))


@pytest.fixture(scope="module")
def long_run(tiny_data, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("early") / "run"
    fit(tiny_data, run_dir, "--max-steps", 70, "--guidance", 2)
    return run_dir


def test_a_run_keeps_what_may_still_be_needed_wherever_it_was_stopped(
    tiny_data, tmp_path, long_run
):
    whole = contents(long_run)
    assert set(whole["early"]) == {32, 64}
    for at in (16, 40, 70):
        fit(tiny_data, tmp_path / "parts", "--max-steps", at, "--guidance", 2)
        if at == 16:
            parts = contents(tmp_path / "parts")
            assert set(parts["early"]) == {16}
            assert same(parts["early"][16], half_precision(parts["ema"]["weights"]))
    parts = contents(tmp_path / "parts")
    assert set(parts["early"]) == {32, 64}
    for step in (32, 64):
        assert same(parts["early"][step], whole["early"][step])


def test_a_loaded_model_has_it_and_hostile_ones_are_refused(long_run, tmp_path):
    early = load_model(long_run).early
    assert early
    assert early.step == 32
    checkpoint = contents(long_run)
    for bad in ({"x": {}}, {1: {}, 2: {}, 3: {}}, {32: {"a": torch.zeros(1)}}, [1]):
        torch.save(checkpoint | {"early": bad}, tmp_path / "bad.ckpt")
        with pytest.raises(ValueError, match=r"early|missing|unknown"):
            load_model(tmp_path / "bad.ckpt")


def test_a_model_that_is_hardly_older_has_no_guide(tiny_data, tmp_path):
    """The average of step 16 is not much worse than a model of 20 steps."""
    fit(tiny_data, tmp_path, "--max-steps", 20)
    assert set(contents(tmp_path)["early"]) == {16}
    assert load_model(tmp_path).early is None


def test_it_goes_into_a_safetensors_file(long_run, tmp_path):
    file = tmp_path / "model.safetensors"
    words = ["--ckpt", str(long_run), "--to", "safetensors", "--half", "--out", str(file)]
    assert convert.main(words) == 0
    found, expected = load_model(file).early, load_model(long_run).early
    assert found
    assert expected
    assert found.step == expected.step
    assert same(found.weights, expected.weights)


def test_sets_of_samples_count_the_evaluations_of_both_networks(long_run, tmp_path):
    loaded = load_model(long_run)
    guidance, guide = choose_guidance(loaded, None, None, labelled=False)
    plan = plan_sampling(loaded.model, steps=10, guidance=guidance, guide=guide)
    alone = plan_sampling(loaded.model, steps=10)
    assert alone.evaluations == 10 < plan.evaluations < 20
    names = {folder_name(one, loaded.sha256) for one in (plan, alone)}
    assert len(names) == 2
    sample_sets.write_samples(loaded.model, plan, tmp_path, 8, seed=0)
    _, cost = sample_sets.read_samples(loaded.model, tmp_path, 8, seed=0)
    assert cost.evaluations == plan.evaluations


def test_images_are_guided_by_it_by_default(long_run, tmp_path):
    def images(name, *flags):
        words = ["--ckpt", long_run, "--num", 4, "--device", "cpu", "--out", tmp_path / name]
        assert Inference.main([*map(str, words), *map(str, flags)]) == 0
        return (tmp_path / name / "samples.npz").read_bytes()

    default = images("default")
    assert default == images("auto", "--guide-with", "auto", "--guidance", 2, "--steps", 10)
    assert default != images("none", "--guidance", 1)
    early = f"{tmp_path}/early.ckpt"
    checkpoint = contents(long_run)
    weights = {name: value.float() for name, value in checkpoint["early"][32].items()}
    torch.save(checkpoint | {"ema": {"n": 1, "weights": weights}}, early)
    assert default == images("path", "--guide-with", early)
