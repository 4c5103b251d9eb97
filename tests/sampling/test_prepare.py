"""From a request to a job: defaults, classes in rows, saved steps, large images."""

from pathlib import Path

import pytest
from models import conditional, model
from PIL import Image

from checkpoints.early_average import EarlyAverage
from checkpoints.loaded_model import LoadedModel
from sampling.arrangement import arrange_images, find_labels
from sampling.generate import NoisingJob, noise_images
from sampling.image_request import ImageRequest
from sampling.prepare import (
    frame_times,
    plan_request,
    prepare,
    saved_steps,
)


def test_images_of_a_model_without_classes_are_in_a_square_grid():
    layout = arrange_images(ImageRequest(), model())
    assert layout.total == 16
    assert layout.labels is None
    assert layout.columns == 0
    assert layout.order == tuple(range(16))
    assert len(arrange_images(ImageRequest(num=100), model()).order) == 64


def test_all_classes_have_a_row_each():
    layout = arrange_images(ImageRequest(label="all", num=4), conditional())
    assert layout.total == 12
    assert layout.labels == (0, 1, 2) * 4
    assert layout.columns == 4
    assert layout.order == (0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11)
    many = arrange_images(ImageRequest(label="all", num=20), conditional())
    assert (many.total, many.columns, len(many.order)) == (60, 8, 24)
    assert many.labels_of(range(58, 60)) == [1, 2]


def test_one_class_is_the_label_of_every_image():
    layout = arrange_images(ImageRequest(label="1", num=3), conditional())
    assert layout.labels == (1, 1, 1)
    assert layout.columns == 0


def test_a_model_trained_only_with_labels_always_gets_one():
    m = conditional(label_dropout=0.0)
    assert arrange_images(ImageRequest(num=5), m).labels == (0, 1, 2, 0, 1)
    layout = arrange_images(ImageRequest(input_image=Path("a.png")), m)
    assert layout.total == 18  # at least 16, and equally many of each class
    assert layout.labels == (0, 1, 2) * 6
    with pytest.raises(ValueError, match="trained only with labels: give another --class"):
        arrange_images(ImageRequest(label="none"), m)


def test_images_of_a_model_with_classes_are_of_each_in_turn():
    assert arrange_images(ImageRequest(num=5), conditional()).labels == (0, 1, 2, 0, 1)
    assert arrange_images(ImageRequest(num=5, label="none"), conditional()).labels is None
    edit = ImageRequest(num=5, input_image=Path("a.png"))
    assert arrange_images(edit, conditional()).labels is None


def test_a_class_is_found_by_its_name_and_a_misspelled_one_gets_a_suggestion():
    m = conditional(class_names=("cat", "dog", "Truck"))
    assert find_labels("truck", m) == [2]
    assert find_labels("ALL", m) == [0, 1, 2]
    with pytest.raises(ValueError, match="unknown class 'trukc', did you mean truck"):
        find_labels("trukc", m)


def test_the_steps_that_are_saved():
    assert saved_steps(ImageRequest(), 1000, 1000) == [0, 50, 500, 1000]
    assert saved_steps(ImageRequest(start_step=300), 1000, 300) == [0, 50, 300]
    assert saved_steps(ImageRequest(save_steps=(7, 0)), 1000, 1000) == [0, 7]
    with pytest.raises(ValueError, match="--save-steps 301 is past t = 300"):
        saved_steps(ImageRequest(save_steps=(0, 301)), 1000, 300)


def test_frames_are_spread_evenly_and_have_the_saved_steps():
    assert frame_times(range(100, -1, -10), 3, [0, 20]) == [0, 20, 50, 100]
    assert frame_times((9, 5, 0), 50, [5]) == [0, 5, 9]
    assert frame_times((9, 5, 0), 0, [5]) == [5]


def test_each_way_to_edit_has_its_own_defaults():
    m, mask = model(T=200, guidance=2.0), Path("mask.png")
    early = EarlyAverage(32, m.unet.state_dict())
    loaded = LoadedModel(m, Path("x.ckpt"), "", step=64, trained_on="", early=early)
    plan = plan_request(ImageRequest(mask=mask, input_image=mask), loaded, [0])
    assert (plan.sampler, plan.steps, plan.variance, plan.clip) == ("ddpm", 100, "small", True)
    assert plan.guidance == 1
    plan = plan_request(ImageRequest(interpolate=(mask, mask)), loaded, [0])
    assert (plan.sampler, plan.steps, plan.clip) == ("ddim", 50, False)
    assert plan.guidance == 1
    with pytest.raises(ValueError, match="--interpolate needs at least 2 steps"):
        plan_request(ImageRequest(interpolate=(mask, mask), steps=1), loaded, [0])
    plan = plan_request(ImageRequest(), loaded, [0])
    assert (plan.sampler, plan.steps, plan.guidance, plan.evaluations) == ("unipc", 10, 2.0, 19)
    plan = plan_request(ImageRequest(sampler="ddpm"), loaded, [0])
    assert (plan.steps, plan.guidance) == (200, 1)


@pytest.mark.parametrize(("size", "frames"), [(512, 50), (513, 4)])
def test_a_large_image_is_noised_at_the_saved_steps_alone(tmp_path, size, frames):
    Image.new("RGB", (size, size)).save(tmp_path / "image.png")
    job = prepare(ImageRequest(input_image=tmp_path / "image.png"), "cpu")
    assert isinstance(job, NoisingJob)
    assert job.saved_only == (size > 512)
    assert len(job.frames) >= frames
    if job.saved_only:
        images = noise_images(job)
        assert sorted(images.frames) == [0, 50, 500, 1000]
        assert images.images.shape == (4, size, size, 3)
        assert not images.predicted


@pytest.mark.parametrize("label", ["none", "None", "NONE"])
def test_none_is_no_class_in_upper_and_lower_case(label):
    assert arrange_images(ImageRequest(num=5, label=label), conditional()).labels is None
    loaded = LoadedModel(conditional(), Path("x.ckpt"), "", step=64, trained_on="")
    with pytest.raises(ValueError, match="give another --class than none"):
        plan_request(ImageRequest(label=label, guidance=2.0), loaded, [0])
