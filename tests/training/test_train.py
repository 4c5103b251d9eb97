"""Training: what a run leaves, exact resume, the average of the weights, signals, refusals."""

import contextlib
import csv
import json
import os
import re
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from training_runs import contents, fit, losses, same

import train
from checkpoints.checkpoint import load_model
from checkpoints.checkpoint_file import read_checkpoint_file
from checkpoints.resume import find_resume_checkpoint
from checkpoints.run_dir import newest_checkpoint
from diffusion.settings import ModelSettings
from DiffusionModel import DiffusionModel
from training.ema import Ema
from training.posthoc_averages import PowerEmas


def test_a_run_leaves_what_it_promises(tiny_run):
    assert [p.name for p in sorted((tiny_run / "checkpoints").iterdir())] == [
        "step_00000012.ckpt",
        "step_00000012.ckpt.sha256",
    ]
    assert {p.name for p in (tiny_run / "samples").iterdir()} == {
        "real.png",
        "step_00000006.png",
        "step_00000012.png",
    }
    assert Image.open(tiny_run / "samples" / "step_00000012.png").size == (62, 62)
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


CHOICES = (
    "--schedule",
    "cosine",
    "--zero-terminal-snr",
    "--parameterization",
    "v",
    "--variance",
    "learned",
    "--weighting",
    "edm",
    "--t-sampling",
    "stratified",
    "--augment",
    "0.5",
    "--class-conditional",
    "--label-dropout",
    "0.5",
    "--posthoc-ema",
)


@pytest.mark.parametrize(
    ("dropout", "at", "choices"),
    [(0, 5, ()), (0.3, 6, ()), (0, 7, ()), (0.3, 9, ()), (0.3, 8, CHOICES)],
)
def test_a_resumed_run_is_the_run_that_was_not_stopped(tiny_data, tmp_path, dropout, at, choices):
    """Every loss and every weight, the averages too, to the last bit; 7 batches an epoch, validation at 6 and 12."""
    options = ("--dropout", dropout, "--flip", *choices)
    fit(tiny_data, tmp_path / "whole", "--max-steps", 17, *options)
    fit(tiny_data, tmp_path / "parts", "--max-steps", at, *options)
    fit(tiny_data, tmp_path / "parts", "--max-steps", 17, *options)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert len(losses(tmp_path / "whole")) == 17
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert same(whole["state_dict"], parts["state_dict"])
    assert whole["ema"]["n"] == parts["ema"]["n"] == 17
    assert same(whole["ema"]["weights"], parts["ema"]["weights"])
    for a, b in zip(whole.get("power", ()), parts.get("power", ())):
        assert same(a, b)
    assert ("power" in whole) == bool(choices)


def test_where_a_run_was_stopped_is_not_in_its_metrics(tiny_data, tmp_path):
    fit(tiny_data, tmp_path / "whole", "--max-steps", 17, "--log-every", 4)
    for at in (6, 11, 17):
        fit(tiny_data, tmp_path / "parts", "--max-steps", at, "--log-every", 4)
    assert list(losses(tmp_path / "whole")) == [4, 8, 12, 16]
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_validation_and_previews_do_not_disturb_training(tiny_data, tmp_path):
    fit(tiny_data, tmp_path / "often", "--max-steps", 10, "--val-every", 2, "--dropout", 0.2)
    fit(tiny_data, tmp_path / "never", "--max-steps", 10, "--val-every", 100, "--dropout", 0.2)
    assert losses(tmp_path / "often") == losses(tmp_path / "never")
    assert same(
        contents(tmp_path / "often")["state_dict"], contents(tmp_path / "never")["state_dict"]
    )


def test_validation_draws_the_same_noise_every_time(tiny_data, tmp_path, monkeypatch):
    """Where the weights stand still, so do the loss, its ten bins and the preview; also after a resume."""
    monkeypatch.setattr(
        torch.nn.init, "zeros_", lambda w: torch.nn.init.constant_(w, 0.1)
    )  # the output depends on t and eps
    fit(tiny_data, tmp_path, "--max-steps", 4, "--val-every", 2, "--lr", 0)
    fit(tiny_data, tmp_path, "--max-steps", 6, "--val-every", 2, "--lr", 0)
    with open(tmp_path / "metrics.csv", newline="") as file:
        found = [tuple(row.values())[2:] for row in csv.DictReader(file) if row["val_loss"]]
    assert len(found) == 3
    assert len(set(found)) == 1
    assert len(set(found[0])) > 5
    assert len({p.read_bytes() for p in (tmp_path / "samples").glob("step_*.png")}) == 1


def test_ema_is_apart_from_the_weights_and_complete(tiny_run):
    checkpoint = contents(tiny_run)
    live = {name.removeprefix("unet."): value for name, value in checkpoint["state_dict"].items()}
    assert checkpoint["ema"]["weights"].keys() == live.keys()
    assert not same(checkpoint["ema"]["weights"], live)
    model, raw = (
        load_model(tiny_run).model,
        load_model(tiny_run, ema=False).model,
    )
    assert same(dict(model.unet.named_parameters()), checkpoint["ema"]["weights"])
    assert same(dict(raw.unet.named_parameters()), live)
    assert not model.training


def test_ema_follows_its_formula_and_forgets_the_initialization():
    """With weights that jump from 0 to 1 after the start, 5,000 updates leave nothing of the 0; a fixed 0.9999 leaves 61%."""
    model = DiffusionModel(width=4, mults=(1,), attention=(), blocks=1, size=4, depth=1)
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    ema, reference = Ema(), 0.0
    ema.on_fit_start(None, model)
    for p in model.parameters():
        torch.nn.init.ones_(p)
    for n in range(5000):
        ema.on_train_batch_end(None, model, {}, None, n)
        d = min(0.9999, (1 + n) / (10 + n))
        reference = d * reference + (1 - d)
    assert all(abs(float(w.mean()) - reference) < 1e-4 for w in ema.weights.values())
    assert reference > 0.9999
    assert all((p == 1).all() for p in model.parameters())


def test_ema_applied_gives_the_weights_back_also_after_an_error():
    model = DiffusionModel(width=4, mults=(1,), attention=(), blocks=1, size=4, depth=1)
    ema = Ema()
    ema.on_fit_start(None, model)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    live = {name: p.detach().clone() for name, p in model.unet.named_parameters()}
    with contextlib.suppress(RuntimeError), ema.applied(model):
        assert same(dict(model.unet.named_parameters()), ema.weights)
        assert not model.training
        raise RuntimeError
    assert same(dict(model.unet.named_parameters()), live)
    assert model.training


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


def test_run_again_it_is_done_and_none_starts_anew(tiny_data, tmp_path, capsys):
    fit(tiny_data, tmp_path / "run", "--max-steps", 3)
    before = contents(tmp_path / "run")
    assert fit(tiny_data, tmp_path / "run", "--max-steps", 3) == 0
    assert "already trained, 3 steps in" in capsys.readouterr().out
    fit(tiny_data, tmp_path / "run", "--max-steps", 2, "--resume", "none")
    assert "the earlier run is now in" in capsys.readouterr().out
    assert contents(tmp_path / "run")["global_step"] == 2
    assert same(contents(tmp_path / "run.1")["state_dict"], before["state_dict"])


def test_time_ends_a_run_and_is_counted_over_its_parts(tiny_data, tmp_path, capsys):
    fit(tiny_data, tmp_path, "--max-steps", 100_000, "--max-time", "2s")
    assert "trained, --max-time is over, at step" in capsys.readouterr().out
    first = contents(tmp_path)
    assert 0 < first["global_step"] < 100_000
    fit(tiny_data, tmp_path, "--max-steps", 100_000, "--max-time", "2s")
    assert "already trained" in capsys.readouterr().out
    assert contents(tmp_path)["global_step"] == first["global_step"]


def test_going_back_to_an_older_checkpoint_spoils_nothing(refused, tiny_data, tmp_path):
    fit(tiny_data, tmp_path / "run", "--max-steps", 7, "--save-every", 4)
    older = tmp_path / "run" / "checkpoints" / "step_00000004.ckpt"
    options = ["--dataset", tiny_data, *TINY, "--resume", older, "--max-steps", "9"]
    assert "choose another --run-dir" in refused(
        train.main, *options, "--run-dir", tmp_path / "run"
    )
    assert train.main([*map(str, options), "--run-dir", str(tmp_path / "branch")]) == 0
    fit(tiny_data, tmp_path / "whole", "--max-steps", 9)
    assert same(
        contents(tmp_path / "branch")["state_dict"], contents(tmp_path / "whole")["state_dict"]
    )
    again = [
        *map(str, options[:-1]),
        "10",
        "--resume",
        str(tmp_path / "whole"),
        "--run-dir",
        str(tmp_path / "from_a_folder"),
    ]
    assert train.main(again) == 0
    assert contents(tmp_path / "from_a_folder")["global_step"] == 10


def test_other_images_are_not_the_same_run(refused, tiny_run, tiny_data, tmp_path):
    with np.load(tiny_data) as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "tiny.npz", **arrays | {"train_images": arrays["train_images"] // 2})
    assert "was trained with data" in refused(
        train.main, "--dataset", tmp_path / "tiny.npz", "--run-dir", tiny_run, *TINY
    )


@pytest.mark.parametrize("part", ["truncated", "state_dict", "ema", "code"])
def test_a_bad_checkpoint_is_not_resumed(refused, tiny_run, tiny_data, tmp_path, part):
    file, marker = tmp_path / "x.ckpt", tmp_path / "marker"
    content = contents(tiny_run)
    if part == "truncated":
        file.write_bytes(newest_checkpoint(tiny_run).read_bytes()[:5000])
    elif part == "code":

        class Bomb:
            def __reduce__(self):
                return os.system, (f"touch {marker}",)

        torch.save(content | {"course": {"x": Bomb()}}, file)
    else:
        weights = content[part].get("weights", content[part])
        weights[next(iter(weights))].fill_(float("nan"))
        torch.save(content, file)
    line = refused(
        train.main, "--dataset", tiny_data, "--run-dir", tmp_path / "run", *TINY, "--resume", file
    )
    assert "x.ckpt" in line
    assert not (tmp_path / "run").exists()
    assert not marker.exists()


def test_the_paper_drops_out_on_cifar10_only(tiny_data, tmp_path):
    (tmp_path / "cifar10.npz").write_bytes(tiny_data.read_bytes())
    fit("cifar10", tmp_path / "run", "--data-root", tmp_path, "--max-steps", 1)
    assert contents(tmp_path / "run")["hyper_parameters"]["dropout"] == 0.1
    fit(tiny_data, tmp_path / "other", "--max-steps", 1)
    assert contents(tmp_path / "other")["hyper_parameters"]["dropout"] == 0.0


def test_two_checkpoints_are_kept(tiny_data, tmp_path):
    fit(tiny_data, tmp_path, "--max-steps", 7, "--save-every", 2)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step_00000006.ckpt",
        "step_00000006.ckpt.sha256",
        "step_00000007.ckpt",
        "step_00000007.ckpt.sha256",
    ]


def test_dry_run_prints_what_to_expect_and_leaves_nothing(tiny_data, tmp_path, capsys):
    assert fit(tiny_data, tmp_path / "none", "--dry-run") == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("parameters", "GFLOPs an image", "GiB", "images/s", "time"))
    assert not (tmp_path / "none").exists()


def test_the_papers_preset_is_the_papers():

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
    assert train.PRESETS["paper"] == {}
    paper = ModelSettings()
    for name in ("width", "mults", "attention", "blocks"):
        assert getattr(args, name) == getattr(paper, name)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--dataset", "nist"], "did you mean mnist?"),
        (["--dataset", "/no/such/folder"], "unknown dataset"),
        (["--batch-size", "0"], "at least 1"),
        (["--batch-size", "100000"], "batch size of 60 or less"),
        (["--mults", "1,x"], "separated by commas"),
        (["--mults", ""], "mults must be"),
        (["--width", "1000000000"], "width must be int from 4 to 1024"),
        (["--image-size", "7"], "divisible"),
        (["--beta-small", "0.5"], "larger than beta_large"),
        (["--beta-large", "nan"], "from 0 to 1"),
        (["--beta-small", "0"], "beta_small must be"),
        (["--T", "1000", "--beta-large", "0.9"], "leave no trace"),
        (["--image-size", "5000"], "size must be"),
        (["--lr", "fast"], "expected a number"),
        (["--max-time", "soon"], "expected a time"),
        (["--device", "cuda"], "this machine has none"),
        (["--resume", "/no/such.ckpt"], "no checkpoint at"),
        (["--run-dir", "/dev/null/x"], "choose another --run-dir"),
        (["--no-such-flag"], "unknown flag --no-such-flag: see python"),
        (["--schedule", "cosin"], "did you mean cosine?"),
        (["--schedule", "/etc/passwd"], "cannot be read as a table of betas"),
        (["--augment", "2"], "from 0 to 1"),
        (
            ["--weighting", "snr"],
            "did you mean min-snr? expected one of plain, min-snr, p2, edm, not 'snr'",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(refused, tiny_data, tmp_path, argv, said):
    if argv == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    given = {"--dataset": str(tiny_data), "--run-dir": str(tmp_path / "run"), "--max-steps": "1"}
    given |= dict(zip(argv[::2], argv[1::2])) if len(argv) > 1 else {argv[0]: "1"}
    line = refused(train.main, *TINY, *(part for pair in given.items() for part in pair))
    assert said in line
    assert not (tmp_path / "run").exists()


def test_eps_is_not_predicted_from_nothing(refused, tiny_data, tmp_path):
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
    assert fit(tiny_data, tmp_path / "run", "--max-steps", 2, "--schedule", tmp_path / "betas") == 0
    m = load_model(tmp_path / "run").model
    assert m.T == 7
    assert [m.beta(t) for t in range(8)] == [0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"betas": (0.1, 2.0)}, "betas must be"),
        ({"betas": (0.1,) * 3}, "betas has 3 numbers"),
        ({"schedule": "x"}, "schedule must be"),
        ({"augment": 5.0}, "augment must be"),
        ({"outputs": 3}, "outputs must be"),
        ({"class_names": ("a",)}, "class_names are 1, not 2"),
        ({"class_names": ("a", "b\nc")}, "printable"),
    ],
)
def test_settings_of_the_choices_are_distrusted(conditional_run, tmp_path, change, said):
    found = contents(conditional_run)
    torch.save(
        found | {"hyper_parameters": found["hyper_parameters"] | change}, tmp_path / "x.ckpt"
    )
    with pytest.raises(ValueError, match=said):
        load_model(tmp_path / "x.ckpt")


@pytest.mark.parametrize("power", [[], "three", "nan"])
def test_averages_are_distrusted(conditional_run, tmp_path, power):
    found = contents(conditional_run)
    m = DiffusionModel(**found["hyper_parameters"])
    torch.save(found, tmp_path / "x.ckpt")
    assert find_resume_checkpoint(
        str(tmp_path / "x.ckpt"), tmp_path / "elsewhere", m, found["course"]
    )
    if power == "nan":
        found["power"][1][next(iter(found["power"][1]))][0] = float("nan")
    else:
        found["power"] = found["power"] + found["power"][:1] if power else []
    torch.save(found, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"not 2|not finite"):
        find_resume_checkpoint(str(tmp_path / "x.ckpt"), tmp_path / "elsewhere", m, found["course"])
    with pytest.raises(ValueError, match=r"must hold 2|not finite"):
        load_model(tmp_path / "x.ckpt", length=0.1)


def test_snapshots_are_at_every_so_manyth_step_wherever_a_run_was_stopped(tiny_data, tmp_path):
    """And of many, those at twice as many steps are kept; those of a course that was left are removed."""
    options = ("--posthoc-ema", "--save-every", 2)
    for at in (5, 9):
        fit(tiny_data, tmp_path / "run", "--max-steps", at, *options)
    names = lambda: [p.name[5:13] for p in sorted((tmp_path / "run" / "averages").glob("*.ckpt"))]  # noqa: E731
    assert names() == ["00000002", "00000004", "00000006", "00000008"]
    ((tmp_path / "run" / "averages") / "step_00000010.ckpt").write_bytes(b"of another course")
    fit(tiny_data, tmp_path / "run", "--max-steps", 11, *options)
    assert (
        len(read_checkpoint_file(tmp_path / "run" / "averages" / "step_00000010.ckpt")["weights"])
        == 2
    )
    few = PowerEmas(tmp_path / "run" / "averages", 2, most=3)
    few.on_save_checkpoint(Namespace(is_global_zero=True, global_step=12), None, {})
    assert names() == ["00000004", "00000008", "00000012"]


def test_other_settings_than_the_runs_are_refused(refused, tiny_run, tiny_data):
    line = refused(
        train.main, "--dataset", tiny_data, "--run-dir", tiny_run, *TINY, "--width", "16"
    )
    assert "was trained with width 8, not 16" in line
    line = refused(
        train.main, "--dataset", tiny_data, "--run-dir", tiny_run, *TINY, "--batch-size", "4"
    )
    assert "was trained with batch_size 8, not 4" in line


def test_images_reach_the_loss_in_the_right_range(tiny_data, tmp_path, monkeypatch):
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
