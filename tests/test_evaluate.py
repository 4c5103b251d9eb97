"""evaluate.py: datasets, processes, sweeps and refusals."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import QUICK, ROOT
from measuring import measure
from PIL import Image

import evaluate
from checkpoints.checkpoint_file import checksum_path
from checkpoints.run_dir import newest_checkpoint

pytestmark = pytest.mark.usefixtures("quick_classifier")


def test_the_images_of_a_run_are_found_by_its_config(tiny_run, tiny_data, tmp_path, capsys):
    """Also those in a file: the checkpoint contains only the file's name."""
    for given, known in (((), True), (("--dataset", tmp_path / "other.npz"), False)):
        with np.load(tiny_data) as archive:
            np.savez(
                tmp_path / "other.npz",
                **{
                    name: 255 - part if "images" in name else part for name, part in archive.items()
                },
            )
        assert (
            evaluate.main(
                [
                    "--ckpt",
                    str(tiny_run),
                    "--device",
                    "cpu",
                    "--num",
                    "0",
                    "--bound",
                    "4",
                    "--json",
                    *map(str, given),
                ]
            )
            == 0
        )
        out = capsys.readouterr().out
        assert ("not the images that it was trained on" not in out) == known
        line = json.loads(out.splitlines()[-1])
        assert (line["trained_on"] == line["train_digest"]) == known
        assert line["dataset"] == ("tiny" if known else "other")


@pytest.mark.slow
def test_two_processes_measure_what_one_does(fresh_run, tiny_data, capsys, tmp_path):
    _, one = measure(
        capsys,
        fresh_run,
        tiny_data,
        "--bound",
        "0",
        "--num",
        "520",
        "--steps",
        "1",
        "--seeds",
        "5,6",
    )  # two files a seed
    for file in (fresh_run / "evaluation").glob("*/seed*.npz"):
        file.unlink()
    command = [
        sys.executable,
        "evaluate.py",
        "--ckpt",
        str(fresh_run),
        "--dataset",
        str(tiny_data),
        "--data-root",
        str(tiny_data.parent),
        "--device",
        "cpu",
        "--precision",
        "32",
        "--bound",
        "0",
        "--num",
        "520",
        "--steps",
        "1",
        "--seeds",
        "5,6",
        "--devices",
        "2",
        "--json",
    ]
    changes = [f"classifier.{name} = {value}" for name, value in QUICK.items()]
    (tmp_path / "sitecustomize.py").write_text(
        "\n".join(["from evaluation import classifier", *changes])
    )
    process = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
    )
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    two = json.loads(process.stdout.splitlines()[-1])
    assert two["distances"]["classifier"]["to_train"] == one["distances"]["classifier"]["to_train"]
    assert two["memorization"] == one["memorization"]


def test_a_sweep_has_a_row_for_each_setting_and_a_plot(fresh_run, tiny_data, capsys):
    table, found = measure(
        capsys,
        fresh_run,
        tiny_data,
        "--num",
        "20",
        "--seeds",
        "0,1",
        "--sweep",
        "sampler,steps",
        "--sampler",
        "heun,dpm++",
        "--steps",
        "2,5",
    )
    rows = found["sweep"]["rows"]
    assert [(row["sampler"], row["steps"], row["evaluations"]) for row in rows] == [
        ("heun", 2, pytest.approx(3, abs=1)),
        ("heun", 5, pytest.approx(8, abs=2)),
        ("dpm++", 2, 2),
        ("dpm++", 5, 5),
    ]
    assert all(
        row["frechet"]["lowest"] <= row["frechet"]["mean"] <= row["frechet"]["highest"]
        and row["seconds"] > 0
        for row in rows
    )
    assert len([line for line in table if line.startswith(("| heun", "| dpm++"))]) == 4
    assert found["sweep"]["plot"] == str(fresh_run / "evaluation" / "sweep.png")
    assert Image.open(found["sweep"]["plot"]).size == (1200, 480)
    assert {row["batch_size"] for row in rows} == {20}
    only, found = measure(
        capsys, fresh_run, tiny_data, "--num", "20", "--seeds", "0", "--sweep", "steps"
    )
    assert [(row["sampler"], row["steps"]) for row in found["sweep"]["rows"]] == [
        ("unipc", 5),
        ("unipc", 10),
        ("unipc", 20),
    ]  # T = 20
    assert found["sweep"]["floor"] < found["sweep"]["ceiling"]
    assert "lowest .. highest" not in " ".join(only)


def test_bad_input_of_evaluate_gives_a_one_line_error_and_status_2(
    tiny_run, conditional_run, tiny_data, tmp_path, refused
):
    def said(*argv):
        return refused(evaluate.main, "--ckpt", tiny_run, "--device", "cpu", *argv)

    here = ("--dataset", tiny_data, "--data-root", tiny_data.parent)
    np.savez(
        tmp_path / "gray.npz",
        train_images=np.zeros((9, 8, 8, 1), np.uint8),
        train_labels=np.zeros(9, int),
    )
    np.savez(tmp_path / "few.npz", train_images=np.zeros((39, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "flat.npz", train_images=np.zeros((40, 8, 8, 3), np.uint8))
    assert "no checkpoint at" in refused(evaluate.main, "--ckpt", tmp_path / "none")
    assert "no folder tiny: give mnist, " in refused(
        evaluate.main, "--ckpt", tiny_run / "checkpoints" / "step_00000012.ckpt", "--device", "cpu"
    )
    assert "leave out --weights raw" in said(*here, "--ema-length", 0.1, "--weights", "raw")
    assert "no averages to combine" in said(*here, "--ema-length", 0.1)
    assert "has 1 channels, and the model 3" in said("--dataset", tmp_path / "gray.npz")
    assert "more than the 20 unseen images" in said(*here, "--flow", 21)
    np.savez(
        tmp_path / "more.npz",
        train_images=np.zeros((9, 8, 8, 3), np.uint8),
        train_labels=np.full(9, 2),
    )
    more = tmp_path / "more.npz"
    assert "the label 2, and the model has 2 classes" in refused(
        evaluate.main, "--ckpt", conditional_run, "--dataset", more
    )
    assert "more than the 20 unseen images" in said(*here, "--bound", 21)
    assert "give 2 or more" in said(*here, "--flow", 1)
    assert "give 4 or more" in said(*here, "--num", 3)
    assert "at least 4" in said(*here, "--references", 3)
    assert "at least 4 of each are needed" in said("--dataset", tmp_path / "few.npz")
    assert "add --sampler ddim" in said(*here, "--eta", 0.5)
    assert "add --sampler ddpm" in said(*here, "--variance", "small", "--sampler", "ddim")
    assert "are for --features inception" in said(*here, "--inception-weights", tmp_path / "x.pth")
    assert "nothing to measure" in said(*here, "--bound", 0, "--num", 0)
    assert "has no labels" in said("--dataset", tmp_path / "flat.npz", "--features", "classifier")
    assert "no file at" in said(
        *here, "--features", "inception", "--inception-weights", tmp_path / "none.pth"
    )
    assert "did you mean classifier?" in said(*here, "--features", "clasifier")
    assert "needs --sweep steps" in said(*here, "--steps", "5,10")
    assert "--class-conditional" in said(*here, "--guidance", 2)
    assert "choose from 1 to 20 steps" in said(*here, "--steps", 21)
    assert "--sweep changes nothing with --doctor" in refused(
        evaluate.main, "--ckpt", tiny_run, "--doctor", "--sweep", "steps"
    )
    assert "--exact changes nothing with --sweep" in said(*here, "--exact", "--sweep", "steps")
    assert "--steps changes nothing here" in said(*here, "--num", 0, "--steps", 5)
    assert "--terms changes nothing here" in said(*here, "--bound", 0, "--terms", 5)
    assert "leave out --terms" in said(*here, "--exact", "--terms", 5)
    assert "is not a run directory" in refused(evaluate.main, "--ckpt", tmp_path, "--doctor")


def test_compiling_a_sweep_with_and_without_guidance_is_refused(
    conditional_run, tiny_data, tmp_path, refused
):
    """By default ddpm has no guidance, and the other samplers have the model's. The network is
    compiled for one batch size, and guidance doubles it."""
    run_dir = tmp_path / "run"
    shutil.copytree(conditional_run, run_dir, ignore=shutil.ignore_patterns("evaluation"))
    file = newest_checkpoint(run_dir)
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["hyper_parameters"]["guidance"] = 2.0
    torch.save(checkpoint, file)
    checksum_path(file).unlink()
    words = ["--ckpt", run_dir, "--dataset", tiny_data, "--device", "cpu", "--num", 8]
    message = refused(evaluate.main, *words, "--sweep", "sampler", "--compile", "default")
    assert "--compile does not go with this --sweep" in message
    assert not list((run_dir / "evaluation").glob("*/seed*"))
