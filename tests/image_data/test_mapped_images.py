"""Memory-mapped images equal those in memory, bit for bit, and are read when needed."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from training_runs import contents, fit, losses, same

import train
from Dataset import Batches, DiffSet
from evaluation import metrics
from evaluation.features import load_feature_extractor
from evaluation.real_images import RealImages
from image_data import mapped_images
from image_data.mapped_images import MappedImages, map_of
from image_data.npz_files import NpzError, Parts, read_npz, write_npz


@pytest.fixture
def held_out(tmp_path):
    """135 random images 8x8, of which 13 are held out, as numpy writes them."""
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (135, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "large.npz", train_images=images, train_labels=np.arange(135) % 5)
    return tmp_path / "large.npz"


@pytest.fixture
def gray(held_out):
    """The first channel of these images."""
    images = read_npz(held_out)["train_images"][..., :1]
    np.savez(held_out.parent / "gray.npz", train_images=images)
    return held_out.parent / "gray.npz"


@pytest.fixture
def both(monkeypatch):
    """A function that loads a split of a dataset twice: in memory, and mapped."""

    def load(train, file, size=8):
        data = []
        for limit in (2**30, 0):
            monkeypatch.setattr(mapped_images, "MAX_BYTES_IN_MEMORY", limit)
            data.append(DiffSet(train, str(file), str(file.parent / "root"), size))
        assert isinstance(data[0].images, torch.Tensor)
        assert isinstance(data[1].images, MappedImages)
        return data

    return load


def next_batches(batches, count):
    """The next `count` training batches, also beyond the end of an epoch."""
    served = []
    while len(served) < count:
        for batch in batches:
            served.append(batch)
            if len(served) == count:
                break
    return served


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for one, other in zip(batches, others):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other))
        assert all(a.stride() == b.stride() or not len(a) for a, b in zip(one, other))


@pytest.mark.parametrize("size", [8, 12])  # its own, and one that it is fitted to
@pytest.mark.parametrize("split", [True, False])
def test_batches_are_those_of_images_in_memory(held_out, gray, tiny_data, both, size, split):
    for file in (held_out, gray, tiny_data):
        memory, mapped = both(split, file, size)
        assert mapped.images.shape == memory.images.shape
        assert torch.equal(mapped.labels, memory.labels)
        assert mapped.digest() == memory.digest()
        assert torch.equal(mapped[3], memory[3])
        assert mapped.images[:1].stride() == memory.images[:1].stride()
        for rank, world_size in ((0, 1), (1, 2)):
            share = {"rank": rank, "world_size": world_size}
            one, other = (Batches(data, 6, 3, flip=True, **share) for data in (memory, mapped))
            assert_equal(next_batches(one, 45), next_batches(other, 45))
            one, other = (Batches(data, 6, shuffle=False, **share) for data in (memory, mapped))
            assert_equal(list(one), list(other))
        one, other = (Batches(data, 6, shuffle=False, limit=8) for data in (memory, mapped))
        assert_equal(list(one), list(other))


@pytest.mark.parametrize("served", [1, 9, 20, 21])  # 20 batches an epoch
def test_a_position_in_mapped_images_is_that_of_images_in_memory(held_out, both, served):
    memory, mapped = both(True, held_out)
    expected = next_batches(Batches(memory, 6, 3, flip=True), 50)
    first, second = (Batches(mapped, 6, 3, flip=True) for _ in range(2))
    next_batches(first, served)  # a few more batches have been prefetched
    second.load_state_dict(first.state_dict())
    assert_equal(next_batches(second, 50 - served), expected[served:])


def test_training_is_that_of_images_in_memory_also_after_a_resume(tiny_data, tmp_path, monkeypatch):
    options = ("--dropout", 0.3, "--flip")
    fit(tiny_data, tmp_path / "memory", "--max-steps", 17, *options)
    monkeypatch.setattr(mapped_images, "MAX_BYTES_IN_MEMORY", 0)
    fit(tiny_data, tmp_path / "mapped", "--max-steps", 5, *options)
    fit(tiny_data, tmp_path / "mapped", "--max-steps", 17, *options)
    assert losses(tmp_path / "memory") == losses(tmp_path / "mapped")
    memory, mapped = (contents(tmp_path / name) for name in ("memory", "mapped"))
    assert same(memory["state_dict"], mapped["state_dict"])
    assert same(memory["ema"]["weights"], mapped["ema"]["weights"])
    assert memory["course"] == mapped["course"]


def test_measurements_are_those_of_images_in_memory(held_out, both, quick_classifier, tmp_path):
    samples = torch.randint(0, 256, (20, 3, 8, 8)).byte()
    found = []
    in_memory, mapped = zip(both(True, held_out), both(False, held_out))
    extractor = load_feature_extractor("classifier", *mapped, tmp_path)
    for sets in (in_memory, mapped):
        real = RealImages(*sets, tmp_path / f"measured{len(found)}")
        audit, picture = metrics.memorization(extractor, samples, real)
        distances = metrics.distances(extractor, [samples], real)
        found.append((audit, picture.tolist(), distances))
    assert found[0] == found[1]


def test_parts_are_written_as_numpy_writes_an_array(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
    arrays = {"train_labels": np.arange(50), "classes": ["a", "bc"]}
    np.savez(tmp_path / "whole.npz", train_images=images, **arrays)
    parts = Parts(images.shape, iter([images[:7], images[7:49], images[49:]]))
    write_npz(tmp_path / "parts.npz", train_images=parts, **arrays)
    assert (tmp_path / "parts.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_a_mapped_array_is_read_only_and_compressed_ones_are_read(held_out, tmp_path):
    array = read_npz(held_out, map_above=1000)["train_images"]
    assert map_of(array)
    assert np.array_equal(array, read_npz(held_out)["train_images"])
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0
    assert map_of(read_npz(held_out, map_above=array.nbytes + 1000)["train_images"]) is None
    np.savez_compressed(tmp_path / "small.npz", train_images=array)
    again = read_npz(tmp_path / "small.npz", map_above=0)["train_images"]
    assert map_of(again) is None
    assert np.array_equal(array, again)


@pytest.mark.parametrize("damage", ["cut", "header", "shape"])
def test_a_damaged_file_is_refused(held_out, damage, tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_images, "MAX_BYTES_IN_MEMORY", 0)
    written = bytearray(held_out.read_bytes())
    if damage == "cut":  # by a copy that was interrupted
        del written[len(written) // 2 :]
    elif damage == "header":
        at = written.index(b"NUMPY")
        written[at : at + 5] = b"OTHER"
    else:
        at = written.index(b"(135, 8, 8, 3)")
        written[at : at + 14] = b"(125, 8, 8, 3)"
    (tmp_path / "damaged.npz").write_bytes(written)
    with pytest.raises(NpzError):
        read_npz(tmp_path / "damaged.npz", map_above=0)
    with pytest.raises(ValueError, match=r"cannot be read as an \.npz file") as error:
        DiffSet(True, str(tmp_path / "damaged.npz"), image_size=8)
    assert "\n" not in str(error.value)


SHARED = """
import sys
from Dataset import DiffSet
from image_data import mapped_images

def anonymous():  # KiB of memory that is this process's own
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

mapped_images.MAX_BYTES_IN_MEMORY = 0
before = anonymous()
data = DiffSet(True, sys.argv[1], image_size=64)
digest, grown = data.digest(), anonymous() - before
maps = [line.split()[1] for line in open("/proc/self/maps") if line.strip().endswith(sys.argv[1])]
print(digest, grown, *maps)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="/proc is Linux's")
def test_two_processes_share_the_pages_of_one_file(tmp_path, monkeypatch):
    """The file has 94 MiB. The second process reads its images and has no copy of them."""
    file = tmp_path / "shared.npz"
    images = np.random.default_rng(0).integers(0, 256, (80, 64, 64, 3), dtype=np.uint8)
    write_npz(file, train_images=Parts((8000, 64, 64, 3), (images for _ in range(100))))
    monkeypatch.setattr(mapped_images, "MAX_BYTES_IN_MEMORY", 0)
    data = DiffSet(True, str(file), image_size=64)
    result = subprocess.run(
        [sys.executable, "-c", SHARED, file], cwd=ROOT, capture_output=True, text=True, check=True
    )
    digest, grown, *maps = result.stdout.split()
    assert digest == data.digest()
    assert int(grown) < 49 * 1024
    assert set(maps) == {"r--s"}  # read-only and shared


def test_fitted_images_are_written_once(held_out, both, tmp_path):
    _, mapped = both(True, held_out, 12)
    (written,) = (tmp_path / "root").iterdir()
    made = written.stat().st_mtime_ns
    _, unseen = both(False, held_out, 12)
    assert [file.stat().st_mtime_ns for file in (tmp_path / "root").iterdir()] == [made]
    assert (len(mapped), len(unseen)) == (122, 13)
    both(True, held_out, 10)
    os.utime(held_out, ns=(1, 1))
    both(True, held_out, 12)
    assert len([*(tmp_path / "root").iterdir()]) == 3  # another size, and a file that has changed


def test_fitted_images_that_cannot_be_written_are_kept_in_memory(
    held_out, both, small_disk, capsys, monkeypatch
):
    memory, _ = both(True, held_out, 12)
    monkeypatch.setattr(mapped_images, "MAX_BYTES_IN_MEMORY", 0)
    for options in ("ro,size=1m", "size=16k"):
        disk = small_disk(options)
        capsys.readouterr()
        data = DiffSet(True, str(held_out), str(disk), 12)
        said = capsys.readouterr().err
        assert "cannot be written" in said
        assert "the images are kept in memory" in said
        assert isinstance(data.images, torch.Tensor)
        assert torch.equal(data.images, memory.images)
        assert not [*disk.iterdir()]


def test_fitted_images_that_are_small_enough_are_kept_in_memory(held_out, both, monkeypatch):
    """A mapped file whose images are small enough for memory when they are fitted."""
    memory, _ = both(True, held_out, 4)
    monkeypatch.setattr(mapped_images, "MAX_BYTES_IN_MEMORY", 135 * 4 * 4 * 3)
    small = DiffSet(True, str(held_out), str(held_out.parent / "none"), 4)
    assert isinstance(small.images, torch.Tensor)
    assert torch.equal(small.images, memory.images)
    assert not (held_out.parent / "none").exists()


def test_a_large_folder_is_mapped_by_train_py(tmp_path, monkeypatch, capsys):
    from PIL import Image

    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(40):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:02}.png")
    monkeypatch.setattr(mapped_images, "MAX_BYTES_IN_MEMORY", 0)
    read = []  # indices of images
    monkeypatch.setattr(MappedImages, "request", lambda self, rows: read.extend(rows.tolist()))
    words = ["--dataset", tmp_path / "photos", "--data-root", tmp_path / "data", *TINY]
    words += ["--run-dir", tmp_path / "run", "--max-steps", 2]
    assert train.main([*map(str, words)]) == 0
    assert "36 images 3x8x8, 4 unseen" in capsys.readouterr().out
    assert {*read} == {*range(40)}
    assert [file.suffix for file in (tmp_path / "data").iterdir()] == [".npz"]


def test_an_array_may_have_any_name(tmp_path, monkeypatch):
    images = np.zeros((20, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "large.npz", train_images=images, path=np.arange(3))
    monkeypatch.setattr(mapped_images, "MAX_BYTES_IN_MEMORY", 0)
    assert len(DiffSet(True, str(tmp_path / "large.npz"), str(tmp_path / "root"), 12)) == 18
    (written,) = (tmp_path / "root").iterdir()
    assert read_npz(written)["path"].tolist() == [0, 1, 2]
