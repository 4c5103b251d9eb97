"""train.py: its flags, presets and refusals, and what a run leaves."""

import csv
import json
import os
import re

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from training_runs import contents, fit

import train
from checkpoints.checkpoint import load_model
from diffusion.settings import ModelSettings
from DiffusionModel import DiffusionModel
from training.presets import PRESETS


def test_the_speedrun_trains(tiny_data, tmp_path):
    assert fit(tiny_data, tmp_path / "run", "--preset", "speedrun", "--max-steps", 3) == 0
    settings = contents(tmp_path / "run")["hyper_parameters"]
    assert settings["parameterization"] == "v"
    assert settings["t_sampling"] == "stratified"
    assert settings["optimizer"] == "muon"
    assert settings["classes"] == 2


def test_files_of_a_finished_run(tiny_run):
    assert [p.name for p in sorted((tiny_run / "checkpoints").iterdir())] == [
        "step_00000012.ckpt",
        "step_00000012.ckpt.sha256",
    ]
    assert {p.name for p in (tiny_run / "samples").iterdir()} == {
        "real.png",
        "step_00000006.png",
        "step_00000012.png",
    }
    with Image.open(
        tiny_run / "samples" / "step_00000012.png"
    ) as preview:  # in tests, previews have 8 samples
        assert preview.size == (32, 32)
    assert list((tiny_run / "tensorboard").glob("events*"))
    config = json.loads((tiny_run / "config.json").read_text())
    assert config["settings"]["width"] == 8
    assert re.fullmatch(r".+, \d+ cores?", config["hardware"])
    with open(tiny_run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["train_loss"]] == list(range(1, 13))
    assert all(float(row["train_loss"]) > 0 for row in rows if row["train_loss"])
    validated = [row for row in rows if row["val_loss"]]
    assert [int(row["step"]) for row in validated] == [6, 12]
    bins = [
        value for name, value in validated[0].items() if name.startswith("val_loss_t") and value
    ]
    assert len(bins) > 5  # 16 images leave a bin of t empty now and then
    assert all(float(value) > 0 for value in bins)
    assert [name for name in rows[0] if name.startswith("val_loss_t")][-1] == "val_loss_t19-20"
    assert not list(tiny_run.rglob("*.tmp.*"))


def test_bf16_is_on_when_it_is_asked_for(tiny_data, tmp_path, monkeypatch):
    seen = set()
    original = DiffusionModel.forward

    def forward(self, x, t, *rest):
        out = original(self, x, t, *rest)
        if self.training:
            seen.add(out.dtype)
        return out

    monkeypatch.setattr(DiffusionModel, "forward", forward)
    fit(tiny_data, tmp_path / "bf16", "--max-steps", 2, "--precision", "bf16")
    assert seen == {torch.bfloat16}
    seen.clear()
    fit(tiny_data, tmp_path / "32", "--max-steps", 2)
    assert seen == {torch.float32}
    assert all(w.dtype == torch.float32 for w in contents(tmp_path / "bf16")["state_dict"].values())


def test_a_run_does_not_resume_on_other_images(refused, tiny_run, tiny_data, tmp_path):
    with np.load(tiny_data) as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "tiny.npz", **arrays | {"train_images": arrays["train_images"] // 2})
    assert "was trained with data" in refused(
        train.main, "--dataset", tmp_path / "tiny.npz", "--run-dir", tiny_run, *TINY
    )


def test_the_paper_preset_has_dropout_on_cifar10_only(tiny_data, tmp_path):
    (tmp_path / "cifar10.npz").write_bytes(tiny_data.read_bytes())
    fit("cifar10", tmp_path / "run", "--data-root", tmp_path, "--max-steps", 1)
    assert contents(tmp_path / "run")["hyper_parameters"]["dropout"] == 0.1
    fit(tiny_data, tmp_path / "other", "--max-steps", 1)
    assert contents(tmp_path / "other")["hyper_parameters"]["dropout"] == 0.0


def test_dry_run_prints_what_to_expect_and_leaves_nothing(tiny_data, tmp_path, capsys):
    assert fit(tiny_data, tmp_path / "none", "--dry-run") == 0
    out = capsys.readouterr().out
    assert all(
        word in out for word in ("parameters", "GFLOPs per image", "GiB", "images/s", "time")
    )
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "preset", "guidance"),
    [
        ("--dataset cifar10", "laptop", 4),
        ("--dataset CIFAR10", "laptop", 4),
        ("--dataset data/cifar10.npz", "laptop", 4),
        ("--dataset cifar10 --guidance 3", "laptop", 3),
        ("--dataset cifar10 --no-class-conditional", "laptop", 1.5),
        ("--dataset cifar10 --condition gray", "laptop", 1),
        ("--dataset cifar10 --condition gray --class-conditional", "laptop", 1),
        ("--dataset mnist", "laptop", 1.5),
        ("--dataset shapes", "quick", 2),
        ("--dataset cifar10", "speedrun", 1),
    ],
)
def test_the_laptop_preset_has_stronger_guidance_for_cifar10(words, preset, guidance):
    assert train.parse_with_preset(words.split(), preset).guidance == guidance


def test_the_paper_preset_has_the_papers_values():

    args = train.build_parser().parse_args(["--preset", "paper"])
    assert (args.T, args.beta_small, args.beta_large, args.parameterization, args.variance) == (
        1000,
        1e-4,
        0.02,
        "eps",
        "large",
    )
    assert (args.batch_size, args.lr, args.warmup, args.clip, args.ema_decay, args.max_steps) == (
        128,
        2e-4,
        5000,
        1.0,
        0.9999,
        800_000,
    )
    assert (args.width, args.mults, args.attention, args.blocks, args.patch, args.film) == (
        128,
        (1, 2, 2, 2),
        (16,),
        2,
        1,
        False,
    )
    assert PRESETS["paper"] == {}
    paper = ModelSettings()
    for name in ("width", "mults", "attention", "blocks"):
        assert getattr(args, name) == getattr(paper, name)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--dataset", "/no/such/folder"], "no folder /no/such/folder: give mnist, "),
        (["--batch-size", "0"], "at least 1"),
        (["--batch-size", "100000"], "batch size of 60 or less"),
        (["--mults", "1,x"], "separated by commas"),
        (["--mults", ""], "mults must be"),
        (["--width", "1000000000"], "--width must be a whole number from 4 to 1024"),
        (
            ["--image-size", "7"],
            "--image-size 7 is not divisible by 2 (patch 1, halved 1 times): choose 8, or other "
            "mults or patch",
        ),
        (["--image-size", "8x13"], "--image-size 8x13 is not divisible by 2"),
        (["--image-size", "13x1"], "choose 12x2, or other mults or patch"),
        (["--image-size", "48x"], "--image-size: expected HEIGHTxWIDTH"),
        (["--beta-small", "0.5"], "larger than --beta-large"),
        (["--beta-large", "nan"], "from 0 to 1"),
        (["--beta-small", "0"], "--beta-small must be"),
        (["--T", "1000", "--beta-large", "0.9"], "alpha_bar must decrease"),
        (["--image-size", "5000"], "size must be"),
        (["--image-size", "8x5000"], "--image-size must be a side of a square or height and width"),
        (["--lr", "fast"], "expected a number"),
        (["--max-time", "soon"], "expected a time"),
        (["--device", "cuda"], "this machine has none"),
        (["--resume", "/no/such.ckpt"], "no checkpoint at"),
        (["--run-dir", "/dev/null/x"], "choose another --run-dir"),
        (["--schedule", "/etc/passwd"], "cannot be read as a table of betas"),
        (["--augment", "2"], "from 0 to 1"),
        (
            ["--weighting", "snr"],
            "invalid choice 'snr', did you mean min-snr? Choose from plain, min-snr, min-snr+1, p2",
        ),
    ],
)
def test_bad_input_gives_a_one_line_error_and_status_2(refused, tiny_data, tmp_path, argv, said):
    if argv == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    given = {"--dataset": str(tiny_data), "--run-dir": str(tmp_path / "run"), "--max-steps": "1"}
    given |= dict(zip(argv[::2], argv[1::2]))
    line = refused(train.main, *TINY, *(part for pair in given.items() for part in pair))
    assert said in line
    assert not (tmp_path / "run").exists()


def test_eps_with_zero_terminal_snr_is_refused(refused, tiny_data, tmp_path):
    line = refused(
        train.main,
        *TINY,
        "--dataset",
        tiny_data,
        "--run-dir",
        tmp_path / "run",
        "--zero-terminal-snr",
    )
    assert "or parameterization v or x0" in line


def test_a_table_of_betas_trains_and_is_kept(tiny_data, tmp_path):
    (tmp_path / "betas").write_text("0.01 0.02 0.05 0.1 0.2 0.4 0.6")
    flags = ["--max-steps", 2, "--schedule", tmp_path / "betas", "--T", 7]
    assert fit(tiny_data, tmp_path / "run", *flags) == 0
    m = load_model(tmp_path / "run").model
    assert m.T == 7
    assert [m.beta(t) for t in range(8)] == [0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6]


def test_settings_that_differ_from_the_run_are_refused(refused, tiny_run, tiny_data):
    line = refused(
        train.main, "--dataset", tiny_data, "--run-dir", tiny_run, *TINY, "--width", "16"
    )
    assert "was trained with --width 8, not --width 16" in line
    line = refused(
        train.main, "--dataset", tiny_data, "--run-dir", tiny_run, *TINY, "--batch-size", "4"
    )
    assert "was trained with --batch-size 8, not --batch-size 4" in line


def test_the_loss_gets_images_in_range_and_the_global_step(tiny_data, tmp_path, monkeypatch):
    seen = []
    original = DiffusionModel.get_loss
    monkeypatch.setattr(
        DiffusionModel,
        "get_loss",
        lambda self, batch, i: (seen.append((batch[0], i)), original(self, batch, i))[1],
    )
    fit(tiny_data, tmp_path, "--max-steps", 9)
    assert [i for _, i in seen] == list(
        range(9)
    )  # the step, not the batch of the epoch (7 batches)
    x = torch.cat([x for x, _ in seen])
    with np.load(tiny_data) as archive:
        expected = archive["train_images"] / 127.5 - 1
    assert len(seen[0][0]) == 8
    assert float(x.min()) == pytest.approx(expected.min(), abs=0.02)
    assert float(x.max()) == pytest.approx(expected.max(), abs=0.02)
    assert os.listdir(tmp_path / "checkpoints")
