"""Image files of all modes and sizes."""

import numpy as np
import pytest
from PIL import Image

from image_data.image_files import decode_folder, decode_image, fit_images
from image_data.npz_files import read_npz

MODES = {
    "L": 90,
    "RGB": (90, 90, 90),
    "RGBA": (90, 90, 90, 255),
    "P": 3,
    "1": 1,
    "LA": (90, 255),
    "CMYK": (0, 0, 0, 100),
    "I;16": 20_000,
    "I": 30_000,
}


def test_a_folder_of_any_mode_and_size(tmp_path):
    for i, (mode, colour) in enumerate(MODES.items()):
        (tmp_path / "mine" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        image = Image.new(mode, (20 + i, 41 - i), colour)
        suffix = "tiff" if mode in ("CMYK", "I") else "png"
        image.save(tmp_path / "mine" / f"class{i % 2}" / f"{i}.{suffix}")
    Image.new("RGB", (50, 30), (255, 0, 0)).save(tmp_path / "mine" / "class0" / "red.jpg")
    (tmp_path / "mine" / "class0" / "notes.txt").write_text("not an image")
    file = decode_folder(tmp_path / "mine", tmp_path / "data", 16)
    arrays = read_npz(file)
    assert arrays["train_images"].shape == (len(MODES) + 1, 16, 16, 3)
    assert arrays["classes"].tolist() == ["class0", "class1"]
    # in the order of their paths: five images of class0 and red.jpg, then four of class1
    assert arrays["train_labels"].tolist() == [0] * 6 + [1] * 4
    written = file.stat().st_mtime_ns
    assert decode_folder(tmp_path / "mine", tmp_path / "data", 16) == file
    assert file.stat().st_mtime_ns == written
    assert [*(tmp_path / "data").iterdir()] == [file]
    Image.new("RGB", (50, 30), (0, 255, 0)).save(tmp_path / "mine" / "class1" / "green.png")
    changed = decode_folder(tmp_path / "mine", tmp_path / "data", 16)
    assert changed != file
    assert len(read_npz(changed)["train_images"]) == len(MODES) + 2


def test_gray_folders_stay_gray_and_the_centre_is_kept(tmp_path):
    picture = np.zeros((10, 30), np.uint8)
    picture[:, 10:20] = 200  # the centre of a wide picture
    (tmp_path / "gray").mkdir()
    for i in range(3):
        Image.fromarray(picture).save(tmp_path / "gray" / f"{i}.png")
    images = read_npz(decode_folder(tmp_path / "gray", tmp_path / "data", 10))["train_images"]
    assert images.shape == (3, 10, 10, 1)
    assert (images == 200).all()


def test_the_centre_is_cropped_to_the_proportions(tmp_path):
    picture = np.zeros((10, 40), np.uint8)
    picture[:, 10:30] = 200
    (tmp_path / "gray").mkdir()
    Image.fromarray(picture).save(tmp_path / "gray" / "wide.png")
    Image.fromarray(picture.T[5:35]).save(tmp_path / "gray" / "high.png")
    file = decode_folder(tmp_path / "gray", tmp_path / "data", (10, 20))
    assert file.name.startswith("gray-10x20-")
    high, wide = read_npz(file)["train_images"]
    assert (wide == 200).all()
    assert high.shape == (10, 20, 1)
    assert (high == 200).all()  # 30x10 has become 60x20, and of that the middle 10 rows are left
    assert decode_folder(tmp_path / "gray", tmp_path / "data", (20, 10)) != file


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_fitted_to_both_sides(channels):
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 12, channels), dtype=np.uint8)
    assert fit_images(images, (6, 12)) is images
    assert np.array_equal(fit_images(images, (6, 4)), images[:, :, 4:8])
    assert np.array_equal(fit_images(images, (2, 12)), images[:, 2:4])
    assert fit_images(images, (3, 12)).shape == (2, 3, 12, channels)


def test_transparency_becomes_white_and_16_bits_keep_their_range(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (decode_image(tmp_path / "clear.png", 8) == 255).all()
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "wide.png")
    assert (decode_image(tmp_path / "wide.png", 8) == 128).all()


@pytest.mark.parametrize("damage", ["text", "cut"])
def test_a_corrupt_image_is_named_and_refused(tmp_path, damage):
    (tmp_path / "mine").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine" / "a.png")
    whole = (tmp_path / "mine" / "a.png").read_bytes()
    (tmp_path / "mine" / "broken.png").write_bytes(
        b"no image" if damage == "text" else whole[: len(whole) // 2]
    )
    with pytest.raises(ValueError, match=r"broken\.png cannot be read") as error:
        decode_folder(tmp_path / "mine", tmp_path / "data", 32)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()
