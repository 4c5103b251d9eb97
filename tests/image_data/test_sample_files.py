"""Images made by other programs: .npz files and folders."""

import numpy as np
import pytest
from PIL import Image

from image_data.sample_files import read_samples

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)


def write_folder(folder, images=PIXELS):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / f"{i}.png")
    return folder


def test_a_folder_is_read_as_it_is(tmp_path):
    """Neither resized nor cropped, with subfolders, without hidden files."""
    write_folder(tmp_path / "all" / "a", PIXELS[:2])
    write_folder(tmp_path / "all" / "b", PIXELS[2:])
    (tmp_path / "all" / ".hidden.png").write_bytes(b"")
    (tmp_path / "all" / "notes.txt").write_text("")
    found = read_samples(tmp_path / "all")
    assert np.array_equal(found.images, PIXELS)
    assert found.labels is None
    without = read_samples(tmp_path / "all", skip=lambda path: path.parent.name == "a")
    assert np.array_equal(without.images, PIXELS[2:])


def test_gray_files_are_gray_unless_one_has_colours(tmp_path):
    folder = write_folder(tmp_path / "gray", PIXELS[..., :1])
    assert np.array_equal(read_samples(folder).images, PIXELS[..., :1])
    Image.fromarray(PIXELS[0]).save(folder / "9.png")
    found = read_samples(folder).images
    assert found.shape == (6, 6, 4, 3)
    assert np.array_equal(found[0], PIXELS[0][..., :1].repeat(3, -1))


@pytest.mark.parametrize(
    ("arr_1", "labels"),
    [
        ({}, None),
        ({"arr_1": np.array([1, 0, 2, 2, 1], np.int32)}, [1, 0, 2, 2, 1]),
        ({"arr_1": np.array([1, 0, 2, 2, -1])}, None),
        ({"arr_1": np.eye(5)}, None),
        ({"arr_1": np.array([1, 0])}, None),
    ],
)
def test_an_npz_may_have_classes(tmp_path, arr_1, labels):
    np.savez(tmp_path / "x.npz", arr_0=PIXELS, **arr_1)
    found = read_samples(tmp_path / "x.npz")
    assert np.array_equal(found.images, PIXELS)
    assert (found.labels is None) == (labels is None)
    assert labels is None or found.labels.tolist() == labels


def test_samples_that_cannot_be_read_give_a_one_line_error(tmp_path):
    def refusal(path):
        with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
            read_samples(path)
        return str(error.value)

    assert "no samples at" in refusal(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no image in" in refusal(tmp_path / "empty")
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04")
    assert "cannot be read as an .npz file" in refusal(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", samples=PIXELS.astype(np.float32))
    assert "but it contains samples float32 (5, 6, 4, 3)" in refusal(tmp_path / "y.npz")
    np.savez(tmp_path / "z.npz", PIXELS.transpose(0, 3, 1, 2))
    assert "but it contains arr_0 uint8 (5, 3, 6, 4)" in refusal(tmp_path / "z.npz")
    np.save(tmp_path / "x.npy", PIXELS)
    assert "neither an .npz file nor a folder" in refusal(tmp_path / "x.npy")
    folder = write_folder(tmp_path / "sizes")
    Image.fromarray(PIXELS[0, :3]).save(folder / "9.png")
    assert "9.png has 4x3 pixels, and " in refusal(folder)
    (folder / "9.png").write_bytes(b"\x89PNG")
    assert "9.png is not an image that can be read: replace or remove it" in refusal(folder)
    np.savez(folder / "samples.npz", PIXELS)
    assert f"give {folder / 'samples.npz'}" in refusal(folder)
