"""Checkpoints that earlier versions of this project wrote can still be loaded and resumed.

old_checkpoint.ckpt.xz was written after 6 steps by the version in which all modules were at the top
level, with `FLAGS` on the images of `old_data`.
"""

import lzma
import pickletools
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import contents

import Inference
import train
from checkpoints.checkpoint import load_model
from checkpoints.run_dir import newest_checkpoint

FILE = Path(__file__).with_name("old_checkpoint.ckpt.xz")
FLAGS = (
    "--width 4 --mults 1 --attention= --blocks 1 --image-size 8 --T 20 --batch-size 8 --lr 1e-3 "
    "--warmup 2 --val-every 6 --val-images 16 --log-every 1 --save-every 6 --device cpu "
    "--precision 32 --preset paper"
).split()


@pytest.fixture(scope="module")
def old_data(tmp_path_factory) -> Path:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 60)
    brightness = 150 * labels[:, None, None, None]
    images = (random.random((60, 8, 8, 3)) * 60 + brightness).astype(np.uint8)
    unseen = (random.random((20, 8, 8, 3)) * 60 + brightness[:20]).astype(np.uint8)
    file = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(
        file, train_images=images, train_labels=labels, test_images=unseen, test_labels=labels[:20]
    )
    return file


@pytest.fixture
def old_run(tmp_path) -> Path:
    """A run directory with the old checkpoint alone."""
    file = tmp_path / "old" / "checkpoints" / "step_00000006.ckpt"
    file.parent.mkdir(parents=True)
    file.write_bytes(lzma.decompress(FILE.read_bytes()))
    return tmp_path / "old"


def test_an_old_checkpoint_is_sampled(old_run, tmp_path):
    loaded = load_model(old_run)
    assert loaded.step == 6
    assert loaded.model.hparams["dataset"] == "tiny"
    flags = ["--num", "2", "--steps", "4", "--device", "cpu", "--out", str(tmp_path / "images")]
    assert Inference.main(["--ckpt", str(old_run), *flags]) == 0
    with np.load(tmp_path / "images" / "samples.npz") as archive:
        assert archive["arr_0"].shape == (2, 8, 8, 3)


def test_a_run_resumes_from_an_old_checkpoint_as_if_it_was_never_stopped(
    old_run, old_data, tmp_path, capsys
):
    for run_dir in (old_run, tmp_path / "new"):
        flags = ["--dataset", str(old_data), "--run-dir", str(run_dir), "--max-steps", "9"]
        assert train.main([*flags, *FLAGS]) == 0
    assert "resuming at step 6" in capsys.readouterr().out
    resumed, whole = contents(old_run), contents(tmp_path / "new")
    assert resumed["global_step"] == whole["global_step"] == 9
    assert resumed["hyper_parameters"] == whole["hyper_parameters"]
    assert resumed["course"] == whole["course"]
    for part in ("state_dict", "ema"):
        found, expected = resumed[part], whole[part]
        if part == "ema":
            found, expected = found["weights"], expected["weights"]
        for name, value in expected.items():
            # not to the last bit: the processor that wrote the file may round differently
            assert torch.allclose(found[name], value, atol=1e-5), name


def test_a_checkpoint_names_no_class_and_no_module_of_this_project(old_run, tiny_run):
    """They would tie old checkpoints to names in the code."""
    for run_dir in (old_run, tiny_run):
        with zipfile.ZipFile(newest_checkpoint(run_dir)) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
            operations = list(pickletools.genops(archive.read(name)))
        globals_ = {argument for operation, argument, _ in operations if operation.name == "GLOBAL"}
        assert globals_ == {
            "collections OrderedDict",
            "torch FloatStorage",
            "torch._utils _rebuild_tensor_v2",
        }
        assert not any(operation.name == "STACK_GLOBAL" for operation, _, _ in operations)
