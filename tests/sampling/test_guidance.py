"""Classifier-free guidance and autoguidance."""

from pathlib import Path

import pytest
import torch
from models import conditional, model, perturbed

from checkpoints.early_average import EarlyAverage
from checkpoints.loaded_model import LoadedModel
from checkpoints.safetensors_format import write_model
from sampling.guidance import Guided, choose_guidance


def test_guidance_extrapolates_from_the_unlabelled_to_the_labelled_prediction():
    m, x, t, y = (
        conditional(),
        torch.randn(4, 1, 8, 8),
        torch.full((4,), 600),
        torch.tensor([0, 1, 2, 0]),
    )
    without = m.denoise(x, t, clip=False).x0_hat
    with_label = m.denoise(x, t, y, clip=False).x0_hat
    assert (without - with_label).abs().max() > 1e-3
    for scale, expected in (
        (0.0, without),
        (1.0, with_label),
        (3.0, without + 3 * (with_label - without)),
    ):
        assert torch.allclose(
            Guided(m, y, scale, clip=False).denoise(x, t).x0_hat, expected, atol=1e-5
        )
        assert torch.allclose(
            Guided(m, y, scale).denoise(x, t).x0_hat, expected.clamp(-1, 1), atol=1e-5
        )
    assert torch.equal(Guided(m).denoise(x, t).x0_hat, without.clamp(-1, 1))
    signal, sigma = m.signal_and_sigma(t)
    eps, eps_y, guided = (
        (x - signal * x_0) / sigma
        for x_0 in (without, with_label, Guided(m, y, 3.0, clip=False).denoise(x, t).x0_hat)
    )
    assert torch.allclose(
        guided, (1 + 2) * eps_y - 2 * eps, atol=1e-4
    )  # Eq. 6, Ho & Salimans 2022, with w = 2


def test_guidance_applies_only_in_its_interval():
    m, x, y = conditional(), torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    guided = Guided(m, y, 3.0, interval=(100, 800))
    for t, inside in ((1, False), (99, False), (100, True), (800, True), (801, False)):
        at = torch.full((4,), t)
        assert torch.allclose(
            guided.denoise(x, at).x0_hat,
            Guided(m, y, 3.0 if inside else 1.0).denoise(x, at).x0_hat,
            atol=1e-6,
        )


def test_guidance_with_a_learned_variance_takes_the_variance_of_the_label():
    m, x, t, y = (
        conditional(variance="learned"),
        torch.randn(4, 1, 8, 8),
        torch.full((4,), 600),
        torch.tensor([0, 1, 2, 0]),
    )
    fraction = Guided(m, y, 3.0).denoise(x, t).fraction
    assert torch.allclose(fraction, m.denoise(x, t, y).fraction, atol=1e-6)


def test_autoguidance_extrapolates_from_the_worse_to_the_better_model():
    m, worse = conditional(), perturbed(conditional())
    x, y = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    guided = Guided(m, y, 3.0, interval=(100, 800), clip=False, guide=worse)
    for at in (99, 100, 800, 801):
        t = torch.full((4,), at)
        strong, weak = (one.denoise(x, t, y, clip=False).x0_hat for one in (m, worse))
        assert (strong - weak).abs().max() > 1e-3
        expected = weak + 3 * (strong - weak) if 100 <= at <= 800 else strong
        assert torch.allclose(guided.denoise(x, t).x0_hat, expected, atol=1e-5)


def loaded(m, early=None) -> LoadedModel:
    return LoadedModel(m, Path("x.ckpt"), "", step=64, trained_on="", early=early)


@pytest.mark.parametrize("by", ["label", "model"])
def test_both_predictions_have_the_condition(by):
    m = conditional(condition="pairs", condition_depth=1)
    guide = perturbed(conditional(condition="pairs", condition_depth=1))
    x, condition = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t, y = torch.full((3,), 400), torch.tensor([0, 1, 2])
    better = m.denoise(x, t, y, clip=False, condition=condition).x0_hat
    worse = m.denoise(x, t, clip=False, condition=condition).x0_hat
    if by == "model":
        worse = guide.denoise(x, t, y, clip=False, condition=condition).x0_hat
    chosen = guide if by == "model" else None
    guided = Guided(m, y, 3.0, clip=False, guide=chosen, condition=condition)
    found = guided.denoise(x, t).x0_hat
    assert torch.allclose(found, worse + 3 * (better - worse), atol=1e-5)


def test_which_guide_is_chosen():
    m = conditional(guidance=2.5)
    early = EarlyAverage(32, m.unet.state_dict())
    both, alone = loaded(m, early), loaded(m)
    for one in (alone, both):
        assert choose_guidance(one, None, None, labelled=True) == (2.5, None)
    assert choose_guidance(alone, None, None, labelled=False) == (1.0, None)
    assert choose_guidance(both, None, None, labelled=False, sampler="ddpm") == (1.0, None)
    assert choose_guidance(alone, 3.0, None, labelled=True) == (3.0, None)
    assert choose_guidance(both, 3.0, None, labelled=True) == (3.0, None)
    assert choose_guidance(both, 1.0, None, labelled=False) == (1.0, None)
    for scale, way, labelled in ((None, None, False), (2.5, None, False), (None, "auto", True)):
        found, guide = choose_guidance(both, scale, way, labelled)
        assert found == 2.5
        assert guide
        assert guide.name == "the average of step 32"
    with pytest.raises(ValueError, match="keeps no early average"):
        choose_guidance(alone, None, "auto", labelled=True)


def test_a_guide_of_other_images_is_refused(tmp_path):
    m = model()
    size = "another image size than the model: 16, not 8"
    for other, said in ((model(size=16), size), (model(schedule="cosine"), "schedule")):
        file = tmp_path / "other.safetensors"
        write_model(loaded(other), file, "ema")
        with pytest.raises(ValueError, match=said):
            choose_guidance(loaded(m), None, str(file), labelled=False)


def test_labels_that_the_model_does_not_know_are_refused():
    with pytest.raises(ValueError, match="3 classes"):
        Guided(conditional(), torch.tensor([3]))
    with pytest.raises(ValueError, match="no classes"):
        Guided(model(), torch.tensor([0]))
