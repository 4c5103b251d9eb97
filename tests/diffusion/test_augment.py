"""Augmentation: the transformations of the images, and the labels given to the network."""

import math

import pytest
import torch
from models import model, perturbed, seeded

from diffusion import augment

IMAGES = torch.rand(4, 3, 16, 16, generator=seeded()) * 2 - 1


def only(**done) -> torch.Tensor:
    row = torch.zeros(8)
    for name, value in done.items():
        row[augment.Amounts._fields.index(name)] = value
    return row.repeat(4, 1)


def test_without_augmentation_the_image_is_unchanged_and_the_label_is_0():
    x, label = augment.augmented(IMAGES, augment.draw(4, 0.0, seeded()))
    assert torch.equal(x, IMAGES)
    assert torch.equal(label, torch.zeros(4, 9))


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        ({"mirror": 1}, IMAGES.flip(3)),
        ({"flip": 1}, IMAGES.flip(2)),
        ({"turn": math.pi}, IMAGES.flip(2, 3)),
        ({"turn": math.pi / 2}, IMAGES.rot90(-1, (2, 3))),
        ({"mirror": 1, "turn": math.pi / 2}, IMAGES.flip(3).rot90(-1, (2, 3))),
    ],
)
def test_transformations_that_move_pixels_onto_pixels(done, expected):
    x, _ = augment.augmented(IMAGES, only(**done))
    assert torch.allclose(x, expected, atol=1e-4)


def test_images_that_are_not_square_turn_without_shear():
    wide = IMAGES[:, :, :8]  # 8x16
    x, _ = augment.augmented(wide, only(turn=math.pi / 2))
    middle = wide[:, :, :, 4:12]  # what stays inside
    assert torch.allclose(x[:, :, :, 4:12], middle.rot90(-1, (2, 3)), atol=1e-4)
    x, _ = augment.augmented(wide, only(right=3 / 16, down=1 / 8))
    assert torch.allclose(x[:, :, 1:, 3:], wide[:, :, :-1, :-3], atol=1e-4)


def test_shifts_and_sizes():
    x, _ = augment.augmented(IMAGES, only(right=3 / 16, down=1 / 16))
    assert torch.allclose(x[:, :, 1:, 3:], IMAGES[:, :, :-1, :-3], atol=1e-4)
    ramp = torch.linspace(-0.5, 0.5, 16).expand(4, 3, 16, 16)
    x, _ = augment.augmented(ramp, only(size=-1.0))  # half the size: twice as steep
    assert torch.allclose(x[:, :, :, 6:10], 2 * ramp[:, :, :, 6:10], atol=1e-3)
    x, _ = augment.augmented(ramp, only(stretch=1.0))  # twice as wide, half as high
    assert torch.allclose(
        x[:, :, :, 5:11], ramp[:, :, :, 5:11] / 2, atol=0.005
    )  # bicubic is not quite linear


def test_a_label_determines_the_augmentation():
    done = augment.draw(500, 0.5, seeded())
    x, label = augment.augmented(torch.rand(500, 1, 8, 8, generator=seeded()), done)
    assert len(label.unique(dim=0)) > 400
    turn = torch.atan2(label[:, 4], label[:, 3] + 1)
    stretch, direction = (
        label[:, 5:7].norm(dim=1) * augment.STRETCH,
        torch.atan2(label[:, 6], label[:, 5]) / 2,
    )
    # a stretch by -s in one direction is one by s at right angles
    again = torch.stack(
        [
            label[:, 0],
            label[:, 1],
            label[:, 2] * augment.SCALE,
            turn,
            stretch,
            direction,
            label[:, 7] * augment.SHIFT,
            label[:, 8] * augment.SHIFT,
        ],
        dim=1,
    )
    back, _ = augment.augmented(torch.rand(500, 1, 8, 8, generator=seeded()), again)
    assert (back - x).abs().max() < 1e-3
    applied = (done != 0).float().mean(0)
    assert ((applied - torch.tensor([0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])).abs() < 0.08).all()


def test_augmentation_labels_are_used_in_training_only():
    m, x = perturbed(model(augment=1.0)), torch.rand(6, 1, 8, 8) * 2 - 1
    seen = []
    m.unet.register_forward_pre_hook(
        lambda _, args: seen.append(args[3] if len(args) > 3 else None)
    )
    m.get_loss(x, 0)
    m.validation_step((x, torch.zeros(6, dtype=torch.long)), 0)
    m.denoise(x, torch.full((6,), 500))
    assert seen[0].shape == (6, 9)
    assert (seen[0] != 0).any()
    assert seen[1] is seen[2] is None
    t = torch.full((6,), 3)
    assert torch.equal(m.unet(x, t, None, torch.zeros(6, 9)), m.unet(x, t))
    assert not torch.allclose(m.unet(x, t, None, seen[0]), m.unet(x, t))
