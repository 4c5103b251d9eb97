"""Image files of all modes and sizes."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from conftest import TINY
from PIL import Image

import train
from image_data import image_files
from image_data.image_files import decode_folder, decode_image, fit_images
from image_data.npz_files import read_npz
from runtime.atomic_file import HOST

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
    with pytest.raises(ValueError, match=r"broken\.png is not an image that can be read") as error:
        decode_folder(tmp_path / "mine", tmp_path / "data", 32)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


def photos(folder, count):
    """Small images in colour, quickly decoded."""
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (4, 4), (i, 255 - i, 0)).save(folder / f"{i:03}.png")
    return folder


def test_decoding_does_not_keep_the_images_in_memory(tmp_path):
    decode_folder(photos(tmp_path / "few", 20), tmp_path / "data", 64)  # one-time allocations
    folder = photos(tmp_path / "many", 200)
    tracemalloc.start()
    try:
        file = decode_folder(folder, tmp_path / "data", 64)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert file.stat().st_size > 200 * 64 * 64 * 3
    assert peak < 200 * 64 * 64 * 3 / 2


def test_one_image_in_colour_among_gray_ones_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "COLOUR_CHECKS", 1)  # of the first image only
    (tmp_path / "mixed").mkdir()
    for i in range(30):
        colour = (9, i, 0) if i == 25 else (i, i, i)
        Image.new("RGB", (8, 8), colour).save(tmp_path / "mixed" / f"{i:02}.png")
    images = read_npz(decode_folder(tmp_path / "mixed", tmp_path / "data", 8))["train_images"]
    assert images.shape == (30, 8, 8, 3)
    assert images[24, 0, 0].tolist() == [24, 24, 24]
    assert images[25, 0, 0].tolist() == [9, 25, 0]
    assert len([*(tmp_path / "data").iterdir()]) == 1


@pytest.mark.parametrize("reason", [SystemExit(130), MemoryError()])
def test_decoding_that_is_interrupted_leaves_nothing_and_begins_again(
    tmp_path, monkeypatch, reason
):
    folder = photos(tmp_path / "mine", 40)

    def interrupted(path, size, values):
        if path.stem == "030":
            raise reason
        return decode_image(path, size, values)

    with monkeypatch.context() as patched:
        patched.setattr(image_files, "decode_image", interrupted)
        with pytest.raises(type(reason)):
            decode_folder(folder, tmp_path / "data", 8)
    assert not (tmp_path / "data").exists()
    assert len(read_npz(decode_folder(folder, tmp_path / "data", 8))["train_images"]) == 40


def test_what_a_killed_process_has_written_is_not_used(tmp_path):
    folder = photos(tmp_path / "mine", 20)
    file = decode_folder(folder, tmp_path / "data", 8)
    whole = file.read_bytes()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    file.rename(half := file.with_name(f".{file.stem}.tmp.{HOST}.{ended.pid}.npz"))
    half.write_bytes(whole[: len(whole) // 2])
    assert decode_folder(folder, tmp_path / "data", 8) == file
    assert file.read_bytes() == whole
    assert [*(tmp_path / "data").iterdir()] == [file]


@pytest.mark.parametrize(
    ("options", "reason"),
    [("size=64k", "No space left on device"), ("ro,size=64k", "Read-only file system")],
)
def test_a_folder_that_cannot_be_written_gives_a_one_line_error(
    tmp_path, small_disk, capsys, options, reason
):
    disk = small_disk(options)
    folder = photos(tmp_path / "mine", 40)
    words = ["--dataset", str(folder), "--data-root", str(disk), "--run-dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        train.main([*words, *TINY, "--image-size", "32", "--max-steps", "1"])
    assert stop.value.code == 2
    *progress, line = capsys.readouterr().err.splitlines()
    assert all("decoding" in one or not one for one in progress)
    assert f"cannot be written ({reason}); it needs 0.1 MiB: choose another --data-root" in line
    assert not [*disk.iterdir()]
    assert not (tmp_path / "run").exists()
