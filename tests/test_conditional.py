"""Image-conditional models: runs of super-resolution and of pairs, from training to a report."""

import contextlib
import json
import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from models import conditional
from PIL import Image
from training_runs import contents, fit, losses, same, weights_hash

import convert
import evaluate
import Inference
import report
import train
from checkpoints.checkpoint import load_model
from Dataset import Batches, PairedSet
from diffusion.conditions import KINDS
from diffusion.draws import unseen_conditions
from evaluation.conditional_samples import psnr
from image_data import mapped_images
from image_data.mapped_images import JoinedImages
from sampling.input_images import EXAMPLE_CONDITION, read_condition
from training import preview


@pytest.fixture(scope="module")
def upscaler(tiny_data, tmp_path_factory):
    """A run of --condition downscale:4 on images of 8x8, in two calls."""
    run_dir = tmp_path_factory.mktemp("conditional") / "upscaler"
    for steps in (4, 8):
        assert fit(tiny_data, run_dir, "--condition", "downscale:4", "--max-steps", steps) == 0
    return run_dir


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """40 pairs: pictures of two halves, each of a random gray level, and the same in colour."""
    folder = tmp_path_factory.mktemp("conditional") / "pairs"
    for part in ("input", "target"):
        (folder / part).mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(40):
        gray = (random.random((1, 2)) * 255).repeat(8, 0).repeat(4, 1).astype(np.uint8)
        colour = np.stack([gray, 255 - gray, gray // 2], axis=-1)
        Image.fromarray(gray).save(folder / "input" / f"{i}.png")
        Image.fromarray(colour).save(folder / "target" / f"{i}.bmp")
    return folder


@pytest.fixture(scope="module")
def paired_run(pairs):
    words = ["--condition", "pairs", "--data-root", pairs.parent / "data", "--max-steps", 6]
    assert fit(pairs, pairs.parent / "run", *words) == 0
    return pairs.parent / "run"


def infer(model, out, *more) -> np.ndarray:
    words = ["--ckpt", model, "--out", out, "--device", "cpu", "--num", 4, *more]
    assert Inference.main([str(word) for word in words]) == 0
    with np.load(out / "samples.npz") as archive:
        return archive["arr_0"]


# ---- training -----------------------------------------------------------------------------------


def test_a_resumed_run_is_the_uninterrupted_one(upscaler, tiny_data, tmp_path):
    words = ["--condition", "downscale:4", "--max-steps", 8]
    assert fit(tiny_data, tmp_path, *words) == 0
    assert losses(tmp_path) == losses(upscaler)
    assert weights_hash(tmp_path) == weights_hash(upscaler)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_changes_nothing_but_rounding(accumulate, tiny_data, tmp_path):
    """Masks are random: each part of a batch must get its own."""
    words = ["--condition", "mask", "--max-steps", 3, "--val-every", 100]
    for name, parts in (("whole", 1), ("parts", accumulate)):
        assert fit(tiny_data, tmp_path / name, *words, "--accumulate", parts) == 0
    parts, whole = (
        {step: float(loss) for step, loss in losses(tmp_path / name).items()}
        for name in ("parts", "whole")
    )
    assert parts == pytest.approx(whole, abs=1e-5)


def test_previews_show_condition_sample_and_original(upscaler, tiny_data):
    with np.load(tiny_data) as archive:
        unseen = archive["test_images"]
    with Image.open(upscaler / "samples" / "step_00000006.png") as image:
        grid = np.asarray(image)
    cells = [grid[2:10, 2 + 10 * i : 10 + 10 * i].astype(int) for i in range(6)]
    assert grid.shape[:2] == (62, 62)  # 12 conditions, 3 images each
    for i in range(2):
        condition, original = cells[3 * i], cells[3 * i + 2]
        assert abs(original - unseen[i]).max() <= 1
        assert condition.std() < original.std()
        assert abs(condition.mean() - original.mean()) < 5


def test_previews_have_the_labels_and_conditions_of_their_originals(monkeypatch, tmp_path):
    batches = []

    def record(model, plan, indices, seed, labels, condition):
        batches.append((labels, condition))
        yield 0, torch.zeros(len(indices), 1, 8, 8), None

    monkeypatch.setattr(preview, "sample_steps", record)
    conditions = torch.arange(5.0)[:, None, None, None].expand(5, 1, 8, 8)
    inputs = preview.PreviewInputs(torch.zeros(5, 1, 8, 8), conditions, [0, 1, 2, 0, 2])
    ema: Any = SimpleNamespace(applied=lambda _: contextlib.nullcontext())
    stop: Any = SimpleNamespace(signal=None)
    m = conditional(condition="pairs", condition_depth=1)
    preview.Preview(tmp_path, ema, 2, stop, inputs=inputs).sample(m)
    assert [label for labels, _ in batches for label in labels] == inputs.labels
    assert torch.equal(torch.cat([given for _, given in batches]), conditions)


def test_the_laptop_preset_turns_labels_on_only_without_a_condition(tiny_data, tmp_path):
    words = ["--preset", "laptop", "--max-steps", 1, "--patch", 1, "--max-time", "1m"]
    assert fit(tiny_data, tmp_path / "labels", *words) == 0
    assert fit(tiny_data, tmp_path / "condition", *words, "--condition", "edges") == 0
    settings = [load_model(tmp_path / name).model.settings for name in ("labels", "condition")]
    assert [one.classes for one in settings] == [2, 0]
    assert [one.guidance for one in settings] == [1.5, 1]


def test_a_conditional_run_can_begin_with_unconditional_weights(tiny_run, tiny_data, tmp_path):
    words = ["--condition", "gray", "--init-from", tiny_run, "--max-steps", 1, "--lr", 0]
    assert fit(tiny_data, tmp_path, *words) == 0
    theirs = contents(tiny_run)["ema"]["weights"]
    ours = contents(tmp_path)["ema"]["weights"]
    first = "conv_in.weight"
    assert torch.equal(ours[first][:, :3], theirs[first])
    assert not ours[first][:, 3:].any()
    del ours[first], theirs[first]
    assert same(ours, theirs)


def test_an_unconditional_run_can_begin_with_conditional_weights(
    upscaler, tiny_data, tmp_path, capsys
):
    words = ["--init-from", upscaler, "--max-steps", 1, "--lr", 0]
    assert fit(tiny_data, tmp_path, *words) == 0
    assert "trained with condition downscale:4, not none" in capsys.readouterr().out
    theirs, ours = (contents(run)["ema"]["weights"] for run in (upscaler, tmp_path))
    assert torch.equal(ours["conv_in.weight"], theirs["conv_in.weight"][:, :3])


# ---- sampling -----------------------------------------------------------------------------------


def test_images_depend_on_the_condition_and_not_on_the_batch(upscaler, tmp_path):
    for name, level in (("dark", 0), ("bright", 255)):
        Image.new("RGB", (2, 2), (level,) * 3).save(tmp_path / f"{name}.png")
    dark = infer(upscaler, tmp_path / "1", "--condition-image", tmp_path / "dark.png")
    bright = infer(upscaler, tmp_path / "2", "--condition-image", tmp_path / "bright.png")
    one_by_one = ["--condition-image", tmp_path / "dark.png", "--batch-size", 1]
    assert not np.array_equal(dark, bright)
    assert np.abs(infer(upscaler, tmp_path / "3", *one_by_one) - dark.astype(int)).max() <= 1


def test_the_default_condition_is_an_unseen_image_of_the_run(upscaler, tmp_path, capsys):
    example = infer(upscaler, tmp_path / "1", "--condition-image", upscaler / EXAMPLE_CONDITION)
    capsys.readouterr()
    assert np.array_equal(infer(upscaler, tmp_path / "2"), example)
    assert f"an unseen image of the run, {upscaler / EXAMPLE_CONDITION}" in capsys.readouterr().out


def test_a_small_image_is_the_condition_of_the_large_one(upscaler, tmp_path):
    model = load_model(upscaler).model
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "small.png")
    Image.fromarray(pixels.repeat(4, 0).repeat(4, 1)).save(tmp_path / "large.png")
    small, large = (
        read_condition(model, tmp_path / f"{name}.png", None, 0) for name in ("small", "large")
    )
    assert small.shape == (3, 8, 8)
    assert torch.allclose(small, large, atol=1e-5)


def test_known_pixels_are_kept(tiny_data, tmp_path):
    assert fit(tiny_data, tmp_path / "run", "--condition", "mask", "--max-steps", 1) == 0
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    for name, array in (("image", pixels), ("mask", mask)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    words = ["--condition-image", tmp_path / "image.png", "--mask", tmp_path / "mask.png"]
    images = infer(tmp_path / "run", tmp_path / "out", *words).astype(int)
    assert abs(images[:, :, :4] - pixels[:, :4]).max() <= 1
    assert abs(images[:, :, 4:] - pixels[:, 4:]).max() > 50
    random_mask = ["--condition-image", tmp_path / "image.png"]
    assert infer(tmp_path / "run", tmp_path / "other", *random_mask).shape == images.shape


# ---- pairs --------------------------------------------------------------------------------------


def test_a_pair_stays_together(pairs, tmp_path):
    data = PairedSet(True, str(pairs), str(tmp_path), 8)
    assert (data.depth, data.paired, len(data)) == (3, 1, 36)
    batches = Batches(data, 12, seed=3, flip=True)
    for x, _ in batches:
        red, given = x[:, :1], x[:, 3:]
        assert (red - given).abs().max() < 1e-6


def test_large_pairs_stay_in_their_files(pairs, tmp_path, monkeypatch):
    memory = PairedSet(True, str(pairs), str(tmp_path), 8)
    monkeypatch.setattr(mapped_images, "MAX_BYTES_IN_MEMORY", 0)
    mapped = PairedSet(True, str(pairs), str(tmp_path), 8)
    assert isinstance(mapped.images, JoinedImages)
    assert mapped.images.shape == memory.images.shape
    assert mapped.digest() == memory.digest()
    chosen = torch.tensor([7, 2, 9])
    assert torch.equal(mapped.images[chosen], memory.images[chosen])
    assert torch.equal(mapped.images.index_select(0, chosen)[:], memory.images[chosen])
    assert torch.equal(mapped.images.split(10)[1][:], memory.images[10:20])
    for one, other in zip(Batches(memory, 12, 3, flip=True), Batches(mapped, 12, 3, flip=True)):
        assert torch.equal(one[0], other[0])


def test_a_model_of_pairs_takes_its_own_kind_of_image(paired_run, pairs, tmp_path):
    model = load_model(paired_run).model
    assert (model.unet.depth, model.unet.condition_depth) == (3, 1)
    given = pairs / "input" / "0.png"
    condition = read_condition(model, given, None, 0)
    pixels = torch.from_numpy(np.asarray(Image.open(given)).copy()).float() / 127.5 - 1
    assert torch.allclose(condition[0], pixels, atol=1e-6)
    assert infer(paired_run, tmp_path, "--condition-image", given).shape == (4, 8, 8, 3)


def test_pairs_are_evaluated(paired_run, capsys):
    words = ["--num", 32, "--data-root", paired_run.parent / "data", "--device", "cpu"]
    assert evaluate.main(["--ckpt", str(paired_run), *map(str, words)]) == 0
    measured = json.loads((paired_run / "metrics.json").read_text())["conditional"]
    assert measured["images"] == 4
    assert "perceptual" not in measured
    assert "the condition" in capsys.readouterr().out
    assert report.main([str(paired_run)]) == 0
    page = (paired_run / "report.html").read_text()
    assert "PSNR, mean of 8 samples" in page
    assert "Not measured for image-conditional models." in page


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "input" / "0.png").unlink(), "0, but"),
        (lambda f: [p.unlink() for p in (f / "target").iterdir()], "no image in"),
        (
            lambda f: Image.new("L", (8, 8)).save(f / "input" / "1.bmp"),
            "input/1.bmp and ",
        ),
    ],
)
def test_incomplete_pairs_are_refused(pairs, tmp_path, refused, change, said):
    folder = tmp_path / "pairs"
    shutil.copytree(pairs, folder)
    change(folder)
    words = ["--dataset", folder, "--data-root", tmp_path, "--run-dir", tmp_path / "run", *TINY]
    assert said in refused(train.main, *words, "--condition", "pairs", "--max-steps", 1)


# ---- evaluation and conversion ------------------------------------------------------------------


def test_psnr_of_a_known_error():
    x = torch.zeros(2, 3, 4, 4)
    error = torch.tensor([0.2, 0.02])[:, None, None, None]
    assert psnr(x + error, x).tolist() == pytest.approx([20, 40], abs=1e-4)


def test_a_mask_does_not_depend_on_the_number_of_images():
    x = torch.rand(6, 1, 8, 8) * 2 - 1
    whole, part = (unseen_conditions(images, "mask", 1, seed=3)[1] for images in (x, x[:4]))
    assert torch.equal(whole[:4], part)
    assert not torch.equal(whole[0, 1], whole[1, 1])


def test_samples_are_compared_with_the_originals(
    upscaler, tiny_data, tmp_path, quick_classifier, capsys
):
    words = ["--num", 16, "--data-root", tmp_path, "--device", "cpu", "--dataset", tiny_data]
    assert evaluate.main(["--ckpt", str(upscaler), *map(str, words)]) == 0
    out = capsys.readouterr().out
    measured = json.loads((upscaler / "metrics.json").read_text())["conditional"]
    assert measured["images"] == 2
    psnr_of = measured["psnr"]
    # the mean has at most the average squared error of its members
    assert psnr_of["mean_sample"] > psnr_of["one_sample"]
    # the tiny images are noise around a gray level, which is all that the condition tells
    assert psnr_of["condition"] == pytest.approx(23, abs=4)
    assert set(measured["perceptual"]) == set(psnr_of)
    assert "bicubic interpolation" in out
    assert "mean of 8 samples" in out
    assert Image.open(upscaler / "evaluation" / "conditional.png").size[0] > 6 * 8


@pytest.mark.parametrize("flag", ["--bound 8", "--flow 2", "--sweep steps", "--references 8"])
def test_what_is_not_measured_is_refused(upscaler, tiny_data, tmp_path, refused, flag):
    words = ["--ckpt", upscaler, "--dataset", tiny_data, "--data-root", tmp_path, *flag.split()]
    assert f"{flag.split()[0]} does not apply" in refused(evaluate.main, *words)


def test_without_samples_there_is_nothing_to_measure(upscaler, tiny_data, tmp_path, refused):
    np.savez(tmp_path / "images.npz", np.zeros((8, 8, 8, 3), np.uint8))
    words = ["--ckpt", upscaler, "--data-root", tmp_path, "--dataset", tiny_data]
    for flags in (["--num", 0], ["--samples", tmp_path / "images.npz"]):
        assert "measured by its samples alone" in refused(evaluate.main, *words, *flags)


def test_the_command_line_has_all_kinds():
    assert train.CONDITIONS == KINDS


def test_safetensors_sample_the_same(upscaler, tmp_path, refused):
    given = ["--condition-image", upscaler / EXAMPLE_CONDITION]
    file = tmp_path / "model.safetensors"
    words = ["--ckpt", str(upscaler), "--to", "safetensors", "--out", str(file)]
    assert convert.main(words) == 0
    expected = infer(upscaler, tmp_path / "1", *given)
    assert np.array_equal(infer(file, tmp_path / "2", *given), expected)
    assert "give --condition-image" in refused(Inference.main, "--ckpt", file)
    for other, name in (("diffusers", "pipeline"), ("onnx", "model.onnx")):
        words = ["--ckpt", upscaler, "--to", other, "--out", tmp_path / name]
        assert "give --to safetensors" in refused(convert.main, *words)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--condition downscale:0", "where N is from 2 to 64"),
        ("--condition downscale:3", "not divisible by 3"),
        ("--condition downscale", "did you mean downscale:N?"),
        ("--condition grey", "'grey', did you mean gray? Choose from downscale:N, gray,"),
        ("--condition pairs", "no image in"),
        ("--condition downscale:4 --eval-every 2", "--eval-every does not measure"),
    ],
)
def test_training_flags_are_refused(tiny_data, tmp_path, refused, flags, said):
    words = ["--dataset", tiny_data, "--run-dir", tmp_path / "run", *TINY, "--max-steps", 1]
    assert said in refused(train.main, *words, *flags.split())
    assert not (tmp_path / "run").exists()


def test_sampling_flags_are_refused(upscaler, tiny_run, tmp_path, refused):
    Image.new("RGB", (8, 8)).save(image := tmp_path / "a.png")
    given = ["--condition-image", image]
    for run, flags, said in (
        (tiny_run, given, "needs a model trained with --condition"),
        (
            upscaler,
            ["--input-image", image, "--start-step", 5],
            "do not apply to an image-conditional model",
        ),
        (upscaler, [*given, "--mask", image], "--mask is for models trained with --condition mask"),
        (upscaler, [*given, "--start-step", 5], "cannot be combined"),
        (upscaler, ["--condition-image", tmp_path / "no.png"], "no image at"),
    ):
        assert said in refused(Inference.main, "--ckpt", run, "--out", tmp_path / "o", *flags)
