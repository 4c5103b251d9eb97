"""The layout of a dataset in an .npz file: what is read, and what is refused."""

import numpy as np
import pytest

from image_data.dataset_files import read_split


@pytest.mark.parametrize("count", [1, 2, 9, 10, 25, 200_000])
def test_without_test_images_every_tenth_is_held_out(tmp_path, count):
    images = np.arange(count).astype(np.uint8)[:, None, None, None]
    np.savez(tmp_path / "a.npz", train_images=images)
    train = len(read_split(tmp_path / "a.npz", train=True).images)
    test = len(read_split(tmp_path / "a.npz", train=False).images)
    expected = {1: (1, 1), 2: (1, 1), 9: (8, 1), 10: (9, 1), 25: (23, 2)}
    assert (train, test) == expected.get(count, (190_000, 10_000))


def test_class_names_come_from_the_caller_the_file_or_the_labels(tmp_path):
    images = np.zeros((12, 8, 8, 1), np.uint8)
    labels = np.arange(12) % 3
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels)
    np.savez(tmp_path / "b.npz", train_images=images, train_labels=labels, classes=[*"xyz"])
    np.savez(tmp_path / "c.npz", arr_0=images)
    assert read_split(tmp_path / "a.npz", train=True).classes == ("0", "1", "2")
    assert read_split(tmp_path / "b.npz", train=True).classes == ("x", "y", "z")
    assert read_split(tmp_path / "b.npz", True, ("a", "b", "c")).classes == ("a", "b", "c")
    unlabelled = read_split(tmp_path / "c.npz", train=True)
    assert unlabelled.classes == ("0",)
    assert set(unlabelled.labels.tolist()) == {0}


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"train_images": np.zeros((3, 8, 8), np.uint8)},
        {"train_images": np.zeros((3, 8, 8, 3))},
        {"train_images": np.zeros((3, 8, 8, 3), np.uint8), "train_labels": np.zeros(2, int)},
        {"train_images": np.array([{}], dtype=object)},
    ],
)
def test_a_wrong_npz_is_refused_in_one_line(tmp_path, arrays):
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(ValueError, match=r"wrong\.npz") as error:
        read_split(tmp_path / "wrong.npz", train=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("label", "classes", "said"),
    [(10, tuple("0123456789"), "has no name among the 10 classes"), (10**9, (), "is too large")],
)
def test_labels_that_name_no_class_are_refused(tmp_path, label, classes, said):
    np.savez(
        tmp_path / "mine.npz",
        train_images=np.zeros((12, 28, 28, 1), np.uint8),
        train_labels=np.full(12, label),
    )
    with pytest.raises(ValueError, match=said):
        read_split(tmp_path / "mine.npz", True, classes)


def test_a_truncated_npz_is_refused(tmp_path):
    np.savez(tmp_path / "cut.npz", train_images=np.zeros((20, 8, 8, 1), np.uint8))
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.npz cannot be read"):
        read_split(tmp_path / "cut.npz", train=True)
