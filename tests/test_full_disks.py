"""Disks that are full or read-only, and odd files: one line, and nothing half-written.

See test_faults.py.
"""

import contextlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK, TINY
from PIL import Image
from training_runs import fit, last_step, losses, weights_hash

import convert
import evaluate
import Inference
import make_gif
import report
import train
from checkpoints.run_dir import newest_checkpoint
from evaluation import classifier

pytestmark = pytest.mark.slow

SHORT = [*TINY, *"--max-steps 12 --save-every 5".split()]
SAMPLE = "--device cpu --num 4 --steps 5".split()


def last_line(capsys, main, *words) -> str:
    """The error message of a script's main that ends with status 2: the line after its progress."""
    capsys.readouterr()
    try:
        status = main(list(map(str, words)))
    except SystemExit as end:
        status = end.code
    lines = capsys.readouterr().err.splitlines()
    assert status == 2
    assert sum("error: " in line for line in lines) == 1
    assert "error: " in lines[-1]
    return lines[-1]


@pytest.fixture
def full_disk(small_disk):
    """A function that fills a disk except for some KiB; returns the disk and a way to free it."""

    def fill(kib: int):
        disk = small_disk("size=1m")
        filler = disk / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 1024)
        with open(filler, "r+b") as file:
            file.truncate(filler.stat().st_size - 1024 * kib)
        return disk, filler.unlink

    return fill


@pytest.fixture(scope="module")
def plain_run(tiny_data, tmp_path_factory) -> Path:
    """A run whose model can be converted to diffusers: all its normalizations have one group."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    assert fit(tiny_data, run_dir, *"--max-steps 2 --width 6 --mults 1".split()) == 0
    return run_dir


def scripts_that_write(run_dir, trajectory, out) -> dict[str, tuple]:
    """Each script that writes, its flags, and the file or folder that appears in `out`."""
    here = ["--ckpt", newest_checkpoint(run_dir)]
    to = {
        "safetensors": ["--to", "safetensors", "--out", out / "x.safetensors"],
        "diffusers": ["--to", "diffusers", "--out", out / "pipe"],
    }
    return {
        "samples": (Inference, [*here, "--out", out / "images", *SAMPLE], "images"),
        "GIF": (make_gif, [trajectory, "--out", out / "x.gif"], "x.gif"),
        "WebP": (make_gif, [trajectory, "--out", out / "x.webp"], "x.webp"),
        "MP4": (make_gif, [trajectory, "--out", out / "x.mp4"], "x.mp4"),
        "safetensors": (convert, [*here, *to["safetensors"]], "x.safetensors"),
        "diffusers": (convert, [*here, *to["diffusers"]], "pipe"),
        "report": (report, [run_dir, "--out", out / "x.html"], "x.html"),
    }


WRITES = ("samples", "GIF", "WebP", "MP4", "safetensors", "diffusers", "report")


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kib_left", [0, 8])
@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_under_what_a_script_writes(
    plain_run, sampled, full_disk, capsys, name, kib_left
):
    disk, free_space = full_disk(kib_left)
    trajectory = sampled / "trajectory.npz"
    script, words, appears = scripts_that_write(plain_run, trajectory, disk)[name]
    assert "No space left on device" in last_line(capsys, script.main, *words)
    assert not [file for file in disk.rglob("*") if ".tmp." in file.name]
    free_space()
    assert script.main(list(map(str, words))) == 0
    assert (disk / appears).exists()


@pytest.mark.parametrize("name", WRITES)
def test_a_read_only_folder(plain_run, sampled, small_disk, refused, name):
    disk = small_disk("ro,size=1m")
    trajectory = sampled / "trajectory.npz"
    script, words, _ = scripts_that_write(plain_run, trajectory, disk)[name]
    assert "Read-only file system" in refused(script.main, *words)


@pytest.mark.parametrize("kind", ["full", "read-only"])
@pytest.mark.parametrize("what", ["classifier", "evaluation"])
def test_no_space_for_a_classifier_or_an_evaluation(
    tiny_run, tiny_data, tmp_path, small_disk, capsys, monkeypatch, what, kind
):
    for name, value in QUICK.items():
        monkeypatch.setattr(classifier, name, value)
    disk = small_disk("size=4m")
    said = {"full": "No space left on device", "read-only": "Read-only file system"}[kind]
    shutil.copytree(tiny_run / "checkpoints", disk / "run" / "checkpoints")
    if kind == "full":
        fill_up(disk)
    else:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    measure = "--num 8 --seeds 0 --bound 0 --device cpu".split()
    if what == "classifier":
        words = ["--ckpt", tiny_run, "--data-root", disk, *measure]
    else:
        words = ["--ckpt", disk / "run", "--dataset", tiny_data, "--data-root", tmp_path, *measure]
    line = last_line(capsys, evaluate.main, *words)
    assert said in line
    assert str(disk) in line


def fill_up(disk) -> None:
    with contextlib.suppress(OSError), open(disk / "rest", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 1024)


def images(folder, names=("a.png", "b.png")) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in names:
        for i in range(20):
            array = random.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(array).save(folder / f"{i} {name}")


def test_metrics_csv_cannot_be_written(start, tmp_path, undisturbed):
    """Every write to /dev/full fails as on a full disk."""
    run_dir, link = tmp_path / "run", tmp_path / "link"
    process = start(run_dir, "--save-every", 1000).until(lambda: last_step(run_dir) > 5)
    link.symlink_to("/dev/full")
    link.replace(run_dir / "metrics.csv")
    assert process.ends() == 1
    assert process.err.splitlines()[-1].startswith(f"train.py: cannot write to {run_dir} (No space")
    assert "Traceback" not in process.err
    assert start(run_dir).ends() == 0
    assert (losses(run_dir), weights_hash(run_dir)) == undisturbed


def test_names_with_spaces_and_other_alphabets(tmp_path):
    folder = tmp_path / "my photos, 100 % 図 'quoted' [x]"
    images(folder / "chats et chiens", ("é 猫.png", "[1].png"))
    assert fit(folder, tmp_path / "a run; echo", "--max-steps", 2, "--data-root", folder / "d") == 0


@pytest.mark.parametrize("kind", ["loop of files", "loop of folders", "to nothing"])
def test_symbolic_links_that_lead_nowhere(tmp_path, refused, kind):
    images(tmp_path / "photos")
    link = tmp_path / "photos" / ("x" if kind == "loop of folders" else "x.png")
    target = {"loop of files": link, "loop of folders": "..", "to nothing": "missing.png"}[kind]
    link.symlink_to(target)
    words = ["--dataset", tmp_path / "photos", "--run-dir", tmp_path / "run", *SHORT]
    words += ["--data-root", tmp_path / "data"]
    if kind == "loop of folders":
        assert train.main(list(map(str, words))) == 0
    else:
        assert "x.png" in refused(train.main, *words)


@pytest.mark.parametrize("flags", [(), ("--value-range", "0,1")])
def test_images_with_values_that_are_not_numbers(tmp_path, capsys, flags):
    images(tmp_path / "photos")
    array = np.full((8, 8), np.nan, np.float32)
    Image.fromarray(array).save(tmp_path / "photos" / "nan.tiff")
    words = ["--dataset", tmp_path / "photos", "--run-dir", tmp_path / "run", *SHORT]
    line = last_line(capsys, train.main, *words, "--data-root", tmp_path / "data", *flags)
    assert "pixels that are not finite numbers" in line
    assert ("nan.tiff" in line) == bool(flags)
    assert not (tmp_path / "run").exists()
