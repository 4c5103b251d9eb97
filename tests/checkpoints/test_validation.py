"""Checkpoints are not trusted: wrong or malicious contents are refused at once."""

import time
import zipfile

import pytest
import torch
from training_runs import contents

from checkpoints.checkpoint import load_model
from checkpoints.checkpoint_file import DamagedFile, read_checkpoint_file
from checkpoints.resume import find_resume_checkpoint
from checkpoints.run_dir import newest_checkpoint
from checkpoints.validation import check_plain_data
from diffusion.settings import check_settings
from DiffusionModel import DiffusionModel


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"betas": (0.1, 2.0)}, "betas must be"),
        ({"betas": (0.1,) * 3}, "betas has 3 numbers"),
        ({"schedule": "x"}, "schedule must be"),
        ({"augment": 5.0}, "augment must be"),
        ({"outputs": 3}, "outputs must be"),
        ({"class_names": ("a",)}, "class_names has 1 names, not 2"),
        ({"class_names": ("a", "b\nc")}, "printable"),
        ({"width": 10**9}, "width must be"),
        ({"size": 10**9}, "size must be"),
        ({"T": 10**12}, "T must be"),
        ({"mults": (10**9,)}, "mults must be"),
        ({"blocks": 10**6}, "blocks must be"),
        ({"classes": 10**12}, "classes must be"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_refused_at_once(conditional_run, tmp_path, change, message):
    checkpoint = contents(conditional_run)
    checkpoint["hyper_parameters"] |= change
    torch.save(checkpoint, tmp_path / "x.ckpt")
    began = time.process_time()
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "x.ckpt")
    # most of it goes into reading the file; a network of such a size would take far longer
    assert time.process_time() - began < 2


@pytest.mark.parametrize("damage", ["missing", "none", "three", "nan"])
def test_wrong_averages_are_refused(conditional_run, tmp_path, damage):
    checkpoint, file = contents(conditional_run), tmp_path / "x.ckpt"
    model = DiffusionModel(**checkpoint["hyper_parameters"])

    def resume():
        return find_resume_checkpoint(
            str(file), tmp_path / "elsewhere", model, checkpoint["course"]
        )

    torch.save(checkpoint, file)
    assert resume()
    averages = checkpoint["power"]
    if damage == "missing":
        del checkpoint["power"]
    elif damage == "none":
        checkpoint["power"] = []
    elif damage == "three":
        checkpoint["power"] = [*averages, averages[0]]
    else:
        averages[1]["conv_in.bias"][0] = float("nan")
    torch.save(checkpoint, file)
    with pytest.raises(ValueError, match=r"not 2|not finite|unexpected contents"):
        resume()
    with pytest.raises(ValueError, match=r"must hold 2|not finite"):
        load_model(file, length=0.1)


def test_a_compressed_checkpoint_is_refused(tiny_run, tmp_path):
    """It could unpack to any size."""
    with (
        zipfile.ZipFile(newest_checkpoint(tiny_run)) as source,
        zipfile.ZipFile(tmp_path / "x.ckpt", "w", zipfile.ZIP_DEFLATED) as compressed,
    ):
        for name in source.namelist():
            compressed.writestr(name, source.read(name))
    with pytest.raises(DamagedFile):
        read_checkpoint_file(tmp_path / "x.ckpt")


def test_a_few_lists_that_stand_for_many_are_refused_at_once():
    """Lists in lists that share their elements: walking through all would take 10**61
    steps."""
    many: list = [0] * 10
    for _ in range(60):
        many = [many] * 10
    began = time.process_time()
    with pytest.raises(ValueError, match="too many"):
        check_plain_data(many)
    with pytest.raises(ValueError, match="width must be"):
        check_settings({"width": many})
    assert time.process_time() - began < 0.5
