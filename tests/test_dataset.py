"""Datasets: names, range of values, order of batches."""

import numpy as np
import pytest
import torch
from PIL import Image

from Dataset import Batches, DiffSet
from runtime.image_size import size_of


def numbered(tmp_path, count=20, size=8) -> DiffSet:
    """Image i is full of the value i."""
    file = tmp_path / "numbered.npz"
    images = np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, size, size, 1)
    )
    np.savez(
        file,
        train_images=images,
        train_labels=np.arange(count),
        test_images=images,
        test_labels=np.arange(count),
    )
    return DiffSet(True, str(file), image_size=size)


def values(x: torch.Tensor) -> list[int]:
    return ((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


@pytest.mark.parametrize(
    ("name", "depth", "classes"),
    [("MNIST", 1, "7"), ("FashionMNIST", 1, "sneaker"), ("CIFAR10", 3, "horse")],
)
def test_the_real_datasets(real_root, name, depth, classes):
    root = real_root(name.lower())
    train, test = DiffSet(True, name, root), DiffSet(False, name.lower(), root)
    assert (len(train), len(test)) == ((50_000 if name == "CIFAR10" else 60_000), 10_000)
    assert train.size == 32
    assert train.depth == depth
    assert train.classes[7] == classes
    assert train[5].shape == (depth, 32, 32)
    assert train[5].dtype == torch.float32
    assert float(min(train[i].min() for i in range(50))) == -1
    assert float(max(train[i].max() for i in range(50))) == 1
    assert set(train.labels.tolist()) == set(range(10))
    assert train.flip == (name == "CIFAR10")
    if depth == 1:  # padded, not resized
        assert (train.images[:, :, :2] == 0).all()
        assert (train.images[:, :, :, -2:] == 0).all()
        from torchvision import datasets

        assert torch.equal(
            train.images[:100, 0, 2:30, 2:30], getattr(datasets, name)(root).data[:100]
        )


def test_an_npz_that_is_not_square_keeps_its_size_by_default(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 10, 3), dtype=np.uint8)
    np.savez(tmp_path / "wide.npz", train_images=images)
    np.savez(tmp_path / "square.npz", train_images=images[:, :, :6])
    wide = DiffSet(True, str(tmp_path / "wide.npz"))
    assert wide.size == (6, 10)
    assert torch.equal(wide.images[:9].permute(0, 2, 3, 1), torch.from_numpy(images[:9]))
    for size in ((4, 12), (8, 8)):
        data = DiffSet(False, str(tmp_path / "wide.npz"), image_size=size_of(*size))
        assert data.images.shape[2:] == size
    assert DiffSet(True, str(tmp_path / "square.npz")).size == 32


def test_a_decoded_dataset_is_read_from_its_npz(tmp_path, monkeypatch):
    """No download is needed if the file exists."""
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28, 1), dtype=np.uint8)
    np.savez(
        tmp_path / "mnist.npz",
        train_images=images,
        train_labels=np.arange(30) % 10,
        test_images=images[:5],
        test_labels=np.arange(5),
    )
    data = DiffSet(True, "MNIST", str(tmp_path))
    assert np.array_equal(data.images[:, 0, 2:30, 2:30], images[..., 0])
    assert len(DiffSet(False, "mnist", str(tmp_path))) == 5


def test_an_unknown_name_suggests_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="did you mean fashionmnist"):
        DiffSet(True, "fashion-mnist", str(tmp_path))


def test_a_folder_of_images_is_a_dataset(tmp_path):
    for i in range(12):
        (tmp_path / "mine" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 30), (i, 0, 0)).save(tmp_path / "mine" / "ab"[i % 2] / f"{i:02}.png")
    for train, count in ((True, 11), (False, 1)):
        data = DiffSet(train, str(tmp_path / "mine"), str(tmp_path / "data"), image_size=16)
        assert len(data) == count
        assert (data.name, data.classes, data.flip) == ("mine", ("a", "b"), True)
        assert all(data[i].shape == (3, 16, 16) for i in range(count))


def test_a_known_dataset_is_recognized_in_any_folder(tmp_path):
    images = np.zeros((12, 28, 28, 1), np.uint8)
    np.savez(tmp_path / "mnist.npz", train_images=images, train_labels=np.full(12, 3))
    data = DiffSet(True, str(tmp_path / "mnist.npz"))
    assert not data.flip
    assert len(data.classes) == 10


def test_an_epoch_is_a_permutation_and_the_next_another(tmp_path):
    batches = Batches(numbered(tmp_path), 4, seed=3)
    epochs = [[v for x, _ in batches for v in values(x)] for _ in range(3)]
    assert all(sorted(e) == list(range(20)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = Batches(numbered(tmp_path), 4, seed=3)
    assert epochs[0] == [v for x, _ in again for v in values(x)]
    assert epochs[0] != [v for x, _ in Batches(numbered(tmp_path), 4, seed=4) for v in values(x)]


@pytest.mark.parametrize("served", [0, 2, 4, 5, 7, 10])
def test_batches_after_a_resume_are_those_of_an_uninterrupted_run(tmp_path, served):
    """Also at the end of an epoch, and with flips; the order does not repeat after a resume."""
    data = numbered(tmp_path)
    data.images = torch.randint(
        0, 256, (20, 1, 8, 8), generator=torch.Generator().manual_seed(0)
    ).to(torch.uint8)

    def endless(batches):
        while True:
            yield from batches

    whole = endless(Batches(data, 4, seed=1, flip=True))
    expected = [next(whole) for _ in range(15)]
    first = Batches(data, 4, seed=1, flip=True)
    part = endless(first)
    for _ in range(served):
        next(part)
    second = Batches(data, 4, seed=1, flip=True)
    second.load_state_dict(first.state_dict())
    rest = endless(second)
    for x, y in expected[served:]:
        again = next(rest)
        assert torch.equal(x, again[0])
        assert torch.equal(y, again[1])


def test_flips_mirror_about_half_of_the_images(tmp_path):
    data = numbered(tmp_path)
    data.images = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    data.images[:, :, :, 0] = 255  # a left edge
    right = [
        float(x[i, 0, 0, -1])
        for _ in range(20)
        for x, _ in Batches(data, 4, seed=_, flip=True)
        for i in range(4)
    ]
    assert set(right) == {-1.0, 1.0}
    assert 140 < right.count(1.0) < 260
    assert all((x[:, 0, :, 0] == 1).all() for x, _ in Batches(data, 4))


def test_validation_keeps_its_order_and_takes_all(tmp_path):
    batches = Batches(numbered(tmp_path), 8, shuffle=False)
    assert [values(x) for x, _ in batches] == [
        list(range(8)),
        list(range(8, 16)),
        list(range(16, 20)),
    ]
    assert len(batches) == 3
    assert [values(x) for x, _ in Batches(numbered(tmp_path), 8, shuffle=False, limit=3)] == [
        [0, 1, 2]
    ]


def test_a_batch_larger_than_the_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match="choose a batch size of 20 or less"):
        Batches(numbered(tmp_path), 21)


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_each_batch(tiny_data, world_size):
    """Their shares, concatenated, are the batch of one process; all have the same position."""
    data = DiffSet(True, str(tiny_data), image_size=8)
    whole = list(Batches(data, 8, seed=3, flip=True))
    shares = [
        Batches(data, 8, seed=3, flip=True, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    parts = [list(share) for share in shares]
    assert all(len(part) == len(whole) for part in parts)
    for i, (x, y) in enumerate(whole):
        assert torch.equal(torch.cat([part[i][0] for part in parts]), x)
        assert torch.equal(torch.cat([part[i][1] for part in parts]), y)
    assert len({str(share.state_dict()) for share in shares}) == 1


def test_processes_take_validation_batches_in_turn(tiny_data):
    """20 images are batches of 8, 8 and 4: two for the first process, one and an empty one for the
    second."""
    data = DiffSet(False, str(tiny_data), image_size=8)
    whole = list(Batches(data, 8, shuffle=False))
    first, second = (
        list(Batches(data, 8, shuffle=False, rank=rank, world_size=2)) for rank in (0, 1)
    )
    assert [len(x) for x, _ in whole] == [8, 8, 4]
    assert [len(x) for x, _ in first] == [8, 4]
    assert [len(x) for x, _ in second] == [8, 0]
    assert torch.equal(first[1][0], whole[2][0])
    assert torch.equal(second[0][0], whole[1][0])


def test_a_batch_that_cannot_be_shared_is_refused(tiny_data):
    with pytest.raises(
        ValueError, match="8 cannot be shared by 3 processes: choose a multiple of 3"
    ):
        Batches(DiffSet(True, str(tiny_data), image_size=8), 8, world_size=3)


@pytest.mark.parametrize("name", ["shapes.npz", "mnist.npz"])
def test_an_existing_file_is_read_whatever_its_name(tmp_path, name):
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / name, train_images=images)
    data = DiffSet(True, str(tmp_path / name))
    assert len(data) == 18
    assert torch.equal(data.images[:9].permute(0, 2, 3, 1), torch.from_numpy(images[:9]))


def test_a_missing_file_is_a_known_dataset_only_by_name_or_in_the_folder_of_datasets(
    tmp_path, monkeypatch
):
    root = tmp_path / "data"
    root.mkdir()
    images = np.zeros((12, 28, 28, 1), np.uint8)
    np.savez(tmp_path / "made.npz", train_images=images)
    monkeypatch.setattr("Dataset.download", lambda *_: tmp_path / "made.npz")
    for name in ("mnist.npz", str(root / "mnist.npz")):
        assert DiffSet(True, name, str(root)).name == "mnist"
    for name in ("mnist.npz", "shapes.npz"):
        with pytest.raises(ValueError, match=f"no file .*wrong/{name}: give mnist"):
            DiffSet(True, str(tmp_path / "wrong" / name), str(root))
