"""Sampling plans: settings, refusals, and the loop that follows a plan."""

import dataclasses

import pytest
import torch
from models import conditional, model

from runtime.devices import tf32
from sampling.guidance import Guided
from sampling.noise import Noise
from sampling.plan import labels_in_turn, plan_sampling, sample_steps
from sampling.samplers import SAMPLERS, sample
from sampling.time_grid import time_grid


def test_default_sampler_and_steps():
    m = model(T=100)
    assert plan_sampling(m).sampler == "unipc"
    assert plan_sampling(m).steps == 20
    assert plan_sampling(m, "heun").steps == 10
    assert plan_sampling(m, "ddpm").steps == 100
    assert plan_sampling(model(T=5)).steps == 5
    assert plan_sampling(m, "ddpm", start=30).times == tuple(range(30, -1, -1))


def test_settings_of_other_samplers_are_left_out():
    m = model(T=20, variance="small")
    assert plan_sampling(m, "ddpm").variance == "small"
    assert plan_sampling(m, "ddim", eta=0.5).eta == 0.5
    assert plan_sampling(m, "unipc", variance="large", eta=0.5) == plan_sampling(m, "unipc")


def test_times_to_keep_are_added():
    assert plan_sampling(model(T=20), steps=2, keep=(3, 17)).times == (20, 17, 10, 3, 0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"start": 21}, "--start-step 21 is past T = 20"),
        ({"steps": 21}, "choose from 1 to 20 steps"),
        ({"variance": "learned"}, "--variance learned needs a model trained with it"),
        ({"guidance": 2.0}, "--guidance needs a model trained with --class-conditional"),
        ({"guidance_interval": (0, 21)}, "--guidance-interval ends past T = 20"),
    ],
)
def test_a_plan_that_the_model_cannot_follow_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        plan_sampling(model(T=20), **wrong)


def test_guidance_needs_images_without_a_label_in_training():
    with pytest.raises(ValueError, match=r"--class-conditional and .*--label-dropout"):
        plan_sampling(conditional(T=20, label_dropout=0.0), guidance=2.0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("interval", [None, (200, 800)])
@pytest.mark.parametrize("keep", [(), (0, 50, 500)])
def test_a_plan_takes_as_many_steps_as_the_evaluations_allow(sampler, interval, keep):
    """The plan is the one with the most steps that takes at most 30 evaluations."""
    m, settings = conditional(), {"guidance": 2.0, "guidance_interval": interval, "keep": keep}
    plan = plan_sampling(m, sampler, evaluations=30, **settings)
    plans = [plan_sampling(m, sampler, steps=steps, **settings) for steps in range(1, 31)]
    assert plan == [one for one in plans if one.evaluations <= 30][-1]
    assert plan.evaluations >= 26
    assert set(keep) <= set(plan.times)


def test_too_few_evaluations_are_refused():
    with pytest.raises(ValueError, match=r"--evaluations 3 is too few.* 4$"):
        plan_sampling(conditional(), "heun", evaluations=3, guidance=2.0)


def test_a_plan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan_sampling(model(T=20)).steps = 3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sample_steps_runs_the_sampler_from_the_noise_of_these_images(sampler):
    m, indices = conditional(T=20), range(3, 5)
    plan = plan_sampling(m, sampler, steps=4, eta=1.0, guidance=2.0)
    found = list(sample_steps(m, plan, indices, seed=7, labels=labels_in_turn(m, indices)))
    noise = Noise(7, indices, (1, 8, 8))
    guided = Guided(m, torch.tensor([0, 1]), 2.0)
    times = time_grid(m, 4, 20)
    expected = list(sample(sampler, guided, noise(), times, noise, "large", 1.0))
    assert [t for t, _, _ in found] == times
    for (_, x, x0_hat), (_, x_expected, x0_expected) in zip(found, expected):
        assert torch.equal(x, x_expected)
        assert torch.equal(x0_hat, x0_expected)


def test_sampling_starts_from_the_given_image_or_latents():
    m, image = model(T=20), torch.rand(1, 8, 8) * 2 - 1
    plan = plan_sampling(m, "ddpm", steps=4, start=10)
    noise = Noise(0, range(2), (1, 8, 8))()
    _, x, _ = next(sample_steps(m, plan, range(2), 0, start_image=image))
    assert torch.equal(x, m.q_sample(image.expand_as(noise), torch.tensor([10, 10]), noise))
    mask = torch.zeros(8, 8, dtype=torch.bool)
    *_, (_, x, _) = sample_steps(m, plan, range(2), 0, start_image=image, mask=mask)
    assert torch.equal(x, image.expand_as(x))
    _, x, _ = next(sample_steps(m, plan, range(2), 0, latents=noise + 1))
    assert torch.equal(x, noise + 1)


def test_autocast_is_on_only_within_a_step(monkeypatch):
    m, inside = model(T=20), []
    forward = m.unet.forward
    monkeypatch.setattr(
        m.unet,
        "forward",
        lambda *inputs: (inside.append(torch.is_autocast_enabled("cpu")), forward(*inputs))[1],
    )
    for _ in sample_steps(m, plan_sampling(m, steps=2, precision="bf16"), range(2), 0):
        assert not torch.is_autocast_enabled("cpu")
    assert inside == [True, True]


def test_labels_in_turn():
    assert labels_in_turn(conditional(), range(2, 6)) == [2, 0, 1, 2]
    assert labels_in_turn(model(), range(2, 6)) is None


def test_only_the_network_of_the_sampler_uses_tf32(monkeypatch):
    seen = []
    m = model()
    forward = m.unet.forward

    def watched(*args):
        seen.append(torch.backends.cudnn.allow_tf32)
        return forward(*args)

    monkeypatch.setattr(m.unet, "forward", watched)
    with tf32(False):
        for precision in ("tf32", "32"):
            for _ in sample_steps(m, plan_sampling(m, steps=1, precision=precision), range(2), 0):
                assert not torch.backends.cudnn.allow_tf32
    assert seen == [True, False]
