"""The page of a run: its contents, and missing and damaged files."""

import html.parser
import json
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from finished_run import EVIL, image_of
from PIL import Image

import report
from checkpoints.checkpoint import load_model
from evaluation.metrics_csv import read_rows
from run_page.charts import format_number
from run_page.checkpoint_summary import read_checkpoint_summary
from run_page.curves import read_losses
from run_page.metric_tables import describe_metrics
from run_page.pictures import noise_real_images, read_sprite


class Parsed(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.words, self.within = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.within = tag

    def handle_data(self, data):
        self.words += "" if self.within in ("style", "script") else " ".join(data.split()) + " "


def test_all_of_the_run_is_on_the_page(page, finished_run, capsys):
    parsed = Parsed(page.read_text())
    for said in (
        "12 steps in 0 min",
        "7.125 ± 0.0625",
        "4.5 4 to 5 0.25 321",
        "Frechet distance to 60 training images",
        "8 of the 8 samples",
        "samples against 60 training images",
        "after step 6",
        "t = 10 ",
        "settings in the checkpoint",
        "parameterization",
        "python train.py --dataset",
        "2 cores",
        torch.__version__,
    ):
        assert said in parsed.words, said
    assert "makes what is missing" not in parsed.words  # nothing is missing
    model = load_model(finished_run).model
    assert f"{sum(p.numel() for p in model.unet.parameters()):,} parameters" in parsed.words
    assert sum(tag == "svg" for tag, _ in parsed.tags) == 4
    assert sum(tag == "canvas" for tag, _ in parsed.tags) == 2


def test_it_is_one_file_in_good_order_and_harmless(page):
    text = page.read_text()
    parsed = Parsed(text)
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert EVIL not in text
    assert EVIL in parsed.words  # escaped, it is shown as it is
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?\s*(https?:)?//", text)
    assert all(
        values["src"].startswith("data:image/png;base64,")
        for tag, values in parsed.tags
        if tag == "img"
    )
    assert all("alt" in values for tag, values in parsed.tags if tag == "img")
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [values["id"] for _, values in parsed.tags if "id" in values]
    assert len(ids) == len(set(ids))
    assert {values["href"][1:] for tag, values in parsed.tags if tag == "a"} <= set(ids)
    assert ("html", {"lang": "en"}) in parsed.tags


@pytest.mark.parametrize(
    ("N", "H", "C", "F"), [(16, 32, 1, 51), (5, 8, 3, 4), (64, 32, 3, 51), (1, 250, 3, 51)]
)
def test_the_sprite_has_frames_of_some_images_and_fits(tmp_path, N, H, C, F):
    random = np.random.default_rng(0)
    frames, predicted = (random.integers(0, 256, (F, N, H, H, C), np.uint8) for _ in "ab")
    np.savez(tmp_path / "x.npz", frames=frames, predicted=predicted, times=np.arange(F)[::-1])
    found = read_sprite(tmp_path / "x.npz")
    n, times, skip = found.script["n"], found.script["times"], found.skip
    assert (n, len(times), skip) == {16: (16, 51, 1), 5: (4, 4, 1), 64: (4, 51, 1), 1: (1, 19, 2)}[
        N
    ]
    assert len(found.sprite.src) < 2_600_000
    chosen = np.linspace(0, N - 1, n).round().astype(int)
    sprite = image_of(found.sprite.src).reshape(len(times), H // skip, 2, n, H // skip, C)
    for row, t in ((0, times[0]), (2, times[2]), (-1, 0)):
        for kind, images in enumerate((frames, predicted)):
            assert np.array_equal(
                sprite[row, :, kind].transpose(1, 0, 2, 3),
                images[F - 1 - t, chosen, ::skip, ::skip],
            )


def test_real_images_are_noised_by_the_models_schedule(finished_run):
    """At t = 0 it is the image itself; at two other t the noise is the same."""
    process = read_checkpoint_summary(finished_run).process
    found = noise_real_images(finished_run / "samples" / "real.png", process, 8, 3)
    real = np.asarray(Image.open(finished_run / "samples" / "real.png"))
    x = {step.t: image_of(step.picture.src).astype(float) / 127.5 - 1 for step in found.steps}
    assert found.count == 3
    assert list(x) == [0, 1, 2, 4, 7, 10, 15, 20]
    for i in range(3):
        assert np.allclose(
            x[0][8 * i : 8 * i + 8] * 127.5 + 127.5, real[2:10, 2 + 10 * i : 10 + 10 * i]
        )
    model, eps = load_model(finished_run).model, {}
    for t in (15, 20):
        inside = abs(x[t]) < 0.999  # values outside are clipped
        eps[t] = np.where(
            inside,
            (x[t] - model.alpha_bar(t) ** 0.5 * x[0]) / (1 - model.alpha_bar(t)) ** 0.5,
            np.nan,
        )
    both = np.isfinite(eps[15] + eps[20])
    assert both.sum() > 100
    assert np.allclose(eps[15][both], eps[20][both], atol=0.03)


def test_losses_are_those_of_metrics_csv(finished_run):
    found = read_losses(finished_run)
    rows = [row for row in read_rows(finished_run) if "val_loss" in row]
    assert found.rows == [(f"{row['step']:.0f}", format_number(row["val_loss"])) for row in rows]
    assert found.bins[0] == ("1 to 2", format_number(rows[-1]["val_loss_t1-2"]))
    assert "validation: from" in found.charts[0]
    assert "step 12: from" in found.charts[1]
    assert "step 6: from" in found.charts[1]


def test_a_missing_section_names_the_command_that_makes_it(finished_run, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(finished_run / "config.json", tmp_path / "run")
    assert report.main([str(tmp_path / "run")]) == 0
    words = Parsed((tmp_path / "run" / "report.html").read_text()).words
    for command in ("Inference.py --ckpt", "evaluate.py --ckpt"):
        assert words.count(f"python {command} {tmp_path / 'run'}") == 2
    for what in (
        "samples",
        "trajectory",
        "forward process",
        "losses",
        "schedule",
        "metrics",
        "neighbours",
        "checkpoint",
    ):
        assert f"No {what} here: " in words
    assert words.count("python train.py --dataset") == 5


def test_an_older_trajectory_has_no_predictions(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    with np.load(finished_run / "images" / "trajectory.npz") as archive:
        np.savez(
            tmp_path / "run" / "images" / "trajectory.npz",
            frames=archive["frames"],
            times=archive["times"],
        )
    assert report.main([str(tmp_path / "run"), "--out", str(tmp_path / "x.html")]) == 0
    parsed = Parsed((tmp_path / "x.html").read_text())
    assert sum(tag == "canvas" for tag, _ in parsed.tags) == 1
    assert "The predictions of x 0 are not in trajectory.npz" in parsed.words


DAMAGED = (
    "config.json",
    "metrics.json",
    "metrics.csv",
    "images/samples.npz",
    "images/trajectory.npz",
    "samples/real.png",
    "samples/step_00000006.png",
    "evaluation/nearest-classifier.png",
)


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"[1, 2]",
        b'{"distances": {"a": {"sampling": 3}}, "bits_per_dim": 5, "memorization": []}',
        b"PK\x03\x04 and no archive",
        b"\x89PNG\r\n\x1a\n and no image",
        b"step,val_loss\n\xff\x00,nan\n1,1e400\n",
    ],
)
def test_damaged_files_do_not_stop_the_page(finished_run, tmp_path, contents):
    shutil.copytree(finished_run, tmp_path / "run")
    for name in DAMAGED:
        (tmp_path / "run" / name).write_bytes(contents)
    (tmp_path / "run" / "checkpoints" / "step_00000012.ckpt").write_bytes(contents)
    assert report.main([str(tmp_path / "run")]) == 0
    words = Parsed((tmp_path / "run" / "report.html").read_text()).words
    assert words.count("makes what is missing") >= 7


def test_too_few_labels_affect_only_the_samples(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    images = np.load(finished_run / "images" / "samples.npz")["arr_0"]
    np.savez(
        tmp_path / "run" / "images" / "samples.npz",
        arr_0=images,
        arr_1=np.zeros(len(images) - 1, int),
    )
    assert report.main([str(tmp_path / "run")]) == 0
    words = Parsed((tmp_path / "run" / "report.html").read_text()).words
    assert f"has {len(images) - 1} labels for {len(images)} images" in words
    assert words.count("makes what is missing") == 1


def test_a_run_that_cannot_be_read_is_not_said_to_be_unwritable(refused, finished_run, monkeypatch):
    def locked(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("run_page.page.gather", locked)
    assert f"cannot read {finished_run} (Permission denied)" in refused(report.main, finished_run)


def test_what_is_not_a_run_is_refused_in_one_line(refused, finished_run, tmp_path):
    assert "is not a run directory" in refused(report.main, tmp_path)
    assert "is not a run directory" in refused(report.main, tmp_path / "none")
    assert "is not a run directory" in refused(report.main, finished_run / "config.json")
    assert "must end in .html" in refused(report.main, finished_run, "--out", tmp_path / "x.pdf")
    (tmp_path / "file").touch()
    assert "cannot write" in refused(
        report.main, finished_run, "--out", tmp_path / "file" / "x.html"
    )
    assert {p.name for p in tmp_path.iterdir()} == {"file"}


def test_a_copy_without_the_template_says_what_is_missing(
    refused, finished_run, tmp_path, monkeypatch
):
    monkeypatch.setattr("run_page.page.TEMPLATE", tmp_path / "page.html")
    assert "page.html, the template of the page, is missing" in refused(report.main, finished_run)


def test_a_sweep_is_a_table():
    row = {"sampler": "ddpm", "variance": "small", "steps": 20, "evaluations": 20.0}
    row["frechet"] = {"mean": 4.5, "lowest": 4.0, "highest": 5.0}
    measured = {
        "features": "classifier",
        "images": 20,
        "seeds": [0, 1],
        "train_images": 60,
        "floor": 0.25,
        "ceiling": 321.0,
        "rows": [row, row | {"sampler": "unipc", "variance": "", "steps": 5}],
    }
    (table,) = describe_metrics({"sweep": measured}, None).tables
    assert (
        table.title
        == "Frechet distance of 2 × 20 samples to 60 training images, in features of classifier"
    )
    assert table.rows == [
        ("ddpm, small variance, 20 steps", "4.5", "4 to 5", "0.25", "321"),
        ("unipc, 5 steps", "4.5", "4 to 5", "0.25", "321"),
    ]


def test_scored_files_are_a_table(finished_run):
    """evaluate.py --samples can write into a run directory that has not been measured."""
    measured = json.loads((finished_run / "metrics.json").read_text())
    distances = measured["distances"]["classifier"]
    del distances["sampling"]
    measured = {"distances": {"classifier": distances | {"samples": "s.npz", "sets": 1}}}
    (table,) = describe_metrics(measured, None).tables
    assert table.title == "20 images of s.npz, in features of classifier"
