"""The conditions of image-conditional models."""

import pytest
import torch
from models import model, perturbed, plain_errors, seeded

from diffusion.conditions import (
    as_picture,
    check_condition,
    concatenate_condition,
    condition_channels,
    is_condition,
    luma,
    make_condition,
    random_masks,
    restore_known_pixels,
)
from diffusion.draws import Draws, Share
from diffusion.settings import check_settings

KINDS = {"downscale:2": 3, "gray": 1, "mask": 4, "edges": 1}


def images(count: int = 4, depth: int = 3, size: int = 8) -> torch.Tensor:
    return torch.rand(count, depth, size, size, generator=seeded()) * 2 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_channels_are_as_announced_and_in_range(kind):
    x = images()
    mask = torch.rand(4, 1, 8, 8, generator=seeded()) < 0.5
    condition = make_condition(kind, x, mask)
    assert condition.shape == (4, KINDS[kind], 8, 8)
    assert condition_channels(kind, 3) == KINDS[kind]
    assert condition.abs().max() <= 1
    assert as_picture(condition, 3).shape == x.shape


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("", True),
        ("downscale:2", True),
        ("downscale:64", True),
        ("downscale:1", False),
        ("downscale:65", False),
        ("downscale:N", False),
        ("downscale:4 ", False),
        ("grey", False),
    ],
)
def test_which_conditions_there_are(text, valid):
    assert is_condition(text) == valid


def test_a_constant_image_stays_constant_when_made_smaller():
    x = torch.full((1, 3, 8, 8), 0.25)
    assert torch.allclose(make_condition("downscale:4", x), x)


def test_the_smaller_image_is_all_that_is_known():
    """Changes within a square of 4x4 pixels that keep its mean do not change the condition."""
    x = images()
    change = torch.randn(x.shape, generator=seeded()).unflatten(2, (2, 4)).unflatten(4, (2, 4))
    change = (change - change.mean(dim=(3, 5), keepdim=True)).flatten(4, 5).flatten(2, 3)
    assert change.abs().max() > 0.1
    one, other = (make_condition("downscale:4", y) for y in (x, x + change))
    assert torch.allclose(one, other, atol=1e-5)


def test_gray_is_the_brightness():
    red, green, blue = torch.eye(3)[:, :, None, None] * torch.ones(3, 3, 2, 2)
    brightness = [float(luma(x[None]).mean()) for x in (red, green, blue)]
    assert brightness == pytest.approx([0.299, 0.587, 0.114])
    gray = images(depth=1)
    assert torch.equal(luma(gray), gray)


def test_edges_are_where_the_image_changes():
    x = -torch.ones(1, 1, 8, 8)
    x[..., 4:] = 1
    found = make_condition("edges", x)[0, 0]
    assert (found[:, 3:5] == 1).all()
    assert (found[:, :3] == -1).all()
    assert (found[:, 5:] == -1).all()
    assert torch.allclose(make_condition("edges", x.transpose(2, 3))[0, 0], found.T)


def test_edges_are_the_same_in_mixed_precision():
    x = images()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = make_condition("edges", x)
    assert torch.equal(mixed, make_condition("edges", x))


def test_hidden_pixels_are_hidden_and_the_others_known():
    x, mask = images(), torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:5] = True
    condition = make_condition("mask", x, mask)
    changed = make_condition("mask", torch.where(mask, -x, x), mask)
    assert torch.equal(condition, changed)
    assert torch.equal(condition[:, 3:] > 0, mask)
    guess = torch.zeros_like(x)
    kept = restore_known_pixels("mask", guess, condition)
    assert torch.equal(kept, torch.where(mask, guess, x))
    assert restore_known_pixels("gray", guess, condition) is guess


def test_masks_vary_and_cover_a_part():
    masks = random_masks(200, 16, 24, seeded(), torch.device("cpu"))
    shares = masks.float().mean(dim=(1, 2, 3))
    assert masks.shape == (200, 1, 16, 24)
    assert 0 < shares.min() < 0.2
    assert 0.6 < shares.max() < 1
    assert masks.float().mean(dim=(0, 1)).min() > 0.05  # every pixel is hidden now and then


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_may_be_divided(kind):
    x, key = images(8), (0, 1, 5)
    whole = Draws(x, key).condition(x, kind, 3)[1]
    assert whole is not None
    parts = []
    for part in range(2):
        share = x[part * 4 : part * 4 + 4]
        parts.append(Draws(share, key, Share(part, 2)).condition(share, kind, 3)[1])
    assert torch.equal(torch.cat(parts), whole)


def test_pairs_are_divided_into_image_and_condition():
    x = images(depth=4)
    target, condition = Draws(x, (0, 1, 5)).condition(x, "pairs", 3)
    assert torch.equal(target, x[:, :3])
    assert torch.equal(condition, x[:, 3:])
    assert Draws(x, (0, 1, 5)).condition(x, "", 4)[1] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("downscale:3", 3, 32, 32), "32x32 is not divisible by 3"),
        (("downscale:4", 3, 32, 30), "32x30 is not divisible by 4"),
        (("gray", 1, 32, 32), "no colour"),
    ],
)
def test_images_that_cannot_have_the_condition_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        check_condition(*arguments)


@pytest.mark.parametrize("value", ["downscale:1", "blur", 3])
def test_settings_from_a_file_are_checked(value):
    with pytest.raises(ValueError, match="condition must be one of downscale:N"):
        check_settings({"condition": value})


@pytest.mark.parametrize(("kind", "channels"), [("gray", 3), ("", 1), ("pairs", 0)])
def test_a_condition_has_its_number_of_channels(kind, channels):
    with pytest.raises(ValueError, match=f"cannot have {channels} channels"):
        check_settings({"condition": kind, "condition_depth": channels, "depth": 3})


# ---- the model ----------------------------------------------------------------------------------


def test_the_network_sees_the_condition_beside_x_t():
    m = perturbed(model(condition="downscale:2", condition_depth=1))
    x, t = images(depth=1), torch.tensor([1, 200, 700, 1000])
    condition = make_condition("downscale:2", images(depth=1))
    output = m(concatenate_condition(x, condition), t)
    assert output.shape == x.shape
    assert not torch.allclose(output, m(concatenate_condition(x, condition.flip(0)), t))
    assert m.unet.conv_in.in_channels == 2


def test_the_loss_depends_on_what_the_condition_says():
    """With x_0 in the condition, a network that copies it has no loss at all."""
    m = model(condition="pairs", condition_depth=1, parameterization="x0")
    m.forward = lambda x, *_: x[:, 1:]  # type: ignore[method-assign]
    x = images(depth=1)
    assert float(m.get_loss(torch.cat([x, x], dim=1), 0)) == 0
    assert float(m.get_loss(torch.cat([x, -x], dim=1), 0)) > 0.1
    assert float(m.validation_step(torch.cat([x, x], dim=1), 0)["error"].max()) == 0


def test_without_a_condition_the_loss_is_that_of_algorithm_1():
    m, x = perturbed(model()), images(depth=1)
    _, errors = plain_errors(m, x, 3)
    assert torch.allclose(m.get_loss(x, 3), errors.mean())
