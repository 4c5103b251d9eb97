"""Images that are not square, from a folder to the report: every script on one run of 8x12."""

import json
import re

import numpy as np
import pytest
from conftest import TINY
from finished_run import image_of
from PIL import Image
from training_runs import contents, losses, same, validation_losses, weights_hash

import convert
import evaluate
import Inference
import make_gif
import report
import train
from checkpoints.checkpoint import load_model
from diffusion.settings import check_settings
from training import dry_run

H, W = 8, 12
AT_8X12 = ["8x12" if before == "--image-size" else flag for before, flag in zip(["", *TINY], TINY)]
# validation every fourth step; normalizations that a UNet2DModel supports
TRAINED = [*AT_8X12, *"--width 6 --mults 1,1 --val-every 4 --val-images 4 --augment 0.5".split()]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """50 pictures of three sizes in two classes, dark and bright."""
    folder = tmp_path_factory.mktemp("pictures") / "photos"
    random = np.random.default_rng(0)
    for i in range(50):
        height, width = ((16, 24), (20, 31), (40, 20))[i % 3]
        pixels = random.integers(0, 60, (height, width, 3)) + 150 * (i % 2)
        file = folder / ("dark", "bright")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    return folder


def fit(photos, run_dir, *more) -> int:
    words = ["--dataset", str(photos), "--data-root", str(photos.parent / "data")]
    return train.main([*words, "--run-dir", str(run_dir), *TRAINED, *map(str, more)])


@pytest.fixture(scope="module")
def run(photos):
    """Four steps, and four more in a second call."""
    run_dir = photos.parent / "run"
    assert fit(photos, run_dir, "--max-steps", 4) == 0
    assert fit(photos, run_dir, "--max-steps", 8) == 0
    return run_dir


def infer(model, out, *more) -> None:
    words = ["--ckpt", str(model), "--out", str(out), "--device", "cpu", "--num", "5"]
    assert Inference.main([*words, *map(str, more)]) == 0


def sampled(out) -> np.ndarray:
    with np.load(out / "samples.npz") as archive:
        return archive["arr_0"]


def test_a_run_resumes_and_has_its_size_everywhere(run, photos, tmp_path, refused):
    assert fit(photos, tmp_path / "at_once", "--max-steps", 8) == 0
    assert weights_hash(tmp_path / "at_once") == weights_hash(run)
    assert losses(tmp_path / "at_once") == losses(run)
    assert len(validation_losses(run)) == 2
    assert len([*(photos.parent / "data").glob("photos-8x12-*.npz")]) == 1
    assert contents(run)["hyper_parameters"]["size"] == (H, W)
    assert json.loads((run / "config.json").read_text())["settings"]["image_size"] == [H, W]
    model = load_model(run).model
    assert model.unet.shape == (3, H, W)
    assert model.settings.size == (H, W)
    with Image.open(run / "samples" / "step_00000008.png") as preview:
        assert preview.size == (2 * (W + 2) + 2, 4 * (H + 2) + 2)  # 8 samples
    words = ["--dataset", photos, "--data-root", photos.parent / "data", "--run-dir", run]
    another = [*words, *TRAINED, "--image-size", "8x16"]
    assert train.main([*map(str, another), "--prepare-data"]) == 0
    assert "it was trained with --image-size 8x12, not --image-size 8x16" in refused(
        train.main, *another
    )


def test_samples_edits_and_the_gif(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    infer(run, "all", "--save-steps", "0,10,20", "--frames", "6", "--batch-size", "2")
    images = sampled(tmp_path / "all")
    assert images.shape == (5, H, W, 3)
    infer(run, "at_once", "--save-steps", "0,10,20", "--frames", "6")
    assert np.array_equal(sampled(tmp_path / "at_once"), images)
    picture = np.full((40, 48, 3), 200, np.uint8)  # 32x48 after cropping
    picture[:4] = picture[-4:] = 0
    Image.fromarray(picture).save("a.png")
    mask = np.zeros((40, 48), np.uint8)
    mask[:, 24:] = 255
    Image.fromarray(mask).save("mask.png")
    infer(run, "edit", "--input-image", "a.png", "--start-step", "1", "--save-steps", "0,1")
    assert abs(sampled(tmp_path / "edit")[:, 2:6, 2:10].mean() - 200) < 20
    infer(run, "painted", "--input-image", "a.png", "--mask", "mask.png", "--steps", "4")
    painted = sampled(tmp_path / "painted")
    assert painted.shape == (5, H, W, 3)
    assert (abs(painted[:, :, :5].astype(int) - 200) < 20).all()  # kept, without the black edges
    assert painted[:, :, 7:].std() > 5
    Image.fromarray(255 - picture).save("b.png")
    infer(run, "between", "--interpolate", "a.png", "b.png", "--steps", "4")
    assert sampled(tmp_path / "between").shape == (5, H, W, 3)
    assert make_gif.main(["all/trajectory.npz", "--scale", "2"]) == 0
    with Image.open("denoise.gif") as gif:
        assert gif.size == (2 * (2 * W + 2) + 2, 3 * (2 * H + 2) + 2 + 22)


@pytest.mark.slow
def test_it_is_measured_and_reported(run, photos, quick_classifier, capsys):
    words = ["--ckpt", str(run), "--data-root", str(photos.parent / "data"), "--device", "cpu"]
    flags = "--json --num 8 --seeds 0 --bound 5 --flow 2 --steps 2 --features classifier".split()
    for _ in range(2):  # the second time the same record is written again
        assert evaluate.main([*words, *flags]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    written = json.loads((run / "metrics.json").read_text())
    assert found["size"] == written["size"] == [H, W]
    assert "earlier" not in written
    assert found["trained_on"] == found["train_digest"]
    assert found["bits_per_dim"]["bound"]["mean"] > 0
    with Image.open(run / "evaluation" / "nearest-classifier.png") as picture:
        assert picture.width > picture.height
    infer(run, run / "images")
    assert evaluate.main([*words[:4], "--doctor"]) == 0
    assert "means of the samples (of the data)" in capsys.readouterr().out
    assert report.main([str(run)]) == 0
    html = (run / "report.html").read_text()
    assert "is no grid of images" not in html
    shapes = {image_of(src).shape[:2] for src in re.findall(r'src="(data:image/png[^"]+)"', html)}
    assert (H, W) in shapes  # a sample
    assert (2 * H, W) in shapes  # two real images with noise, one below the other


@pytest.mark.slow
def test_safetensors_and_diffusers_sample_the_same(run, tmp_path):
    infer(run, tmp_path / "own", "--precision", "32")
    for form, out in (("safetensors", "m.safetensors"), ("diffusers", "pipe")):
        words = ["--ckpt", str(run), "--to", form, "--out", str(tmp_path / out)]
        assert convert.main(words) == 0
        infer(tmp_path / out, tmp_path / form, "--precision", "32")
        assert np.array_equal(sampled(tmp_path / form), sampled(tmp_path / "own"))
    config = json.loads((tmp_path / "pipe" / "unet" / "config.json").read_text())
    assert config["sample_size"] == [H, W]


@pytest.mark.slow
def test_onnx_accepts_images_that_are_not_square(run, tmp_path, capsys):
    import onnxruntime

    file = tmp_path / "model.onnx"
    assert convert.main(["--ckpt", str(run), "--to", "onnx", "--out", str(file)]) == 0
    assert "in onnxruntime it is off by" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [3, H, W]


@pytest.mark.slow
def test_a_new_run_of_another_size_starts_from_the_weights_of_this_one(
    run, photos, tmp_path, refused
):
    flags = ["--max-steps", 1, "--lr", 0, "--init-from", run]
    # attention at the second level, as in the run: 8 for 16x24, 4 for 8x12
    assert fit(photos, tmp_path / "b", "--image-size", "16x24", "--attention", 8, *flags) == 0
    theirs, ours = (contents(one)["ema"]["weights"] for one in (run, tmp_path / "b"))
    assert same(ours, theirs)
    words = ["--dataset", photos, "--data-root", photos.parent / "data", "--run-dir", tmp_path]
    line = refused(train.main, *words, *TRAINED, "--image-size", "16x24", *flags)
    assert "give --width 6 --mults 1,1 --attention 8" in line


def test_an_npz_trains_at_its_own_size(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dry_run, "SECONDS", 0.1)
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 10, 1), dtype=np.uint8)
    np.savez(tmp_path / "wide.npz", train_images=images)
    at = AT_8X12.index("--image-size")
    flags = [*AT_8X12[:at], *AT_8X12[at + 2 :], "--max-steps", "1"]
    words = ["--dataset", str(tmp_path / "wide.npz"), "--run-dir", str(tmp_path / "run")]
    assert train.main([*words, *flags, "--dry-run"]) == 0
    assert "18 images 1x6x10, 2 unseen" in capsys.readouterr().out
    assert train.main([*words, *flags]) == 0
    assert contents(tmp_path / "run")["hyper_parameters"]["size"] == (6, 10)


@pytest.mark.parametrize(
    ("size", "good"),
    [
        (8, True),
        ((8, 12), True),
        ((8, 8), False),  # one way to write a square
        ((8,), False),
        ((8, 12, 3), False),
        ([8, 12], False),
        ((8, 1025), False),
        ((0, 8), False),
        ((8, 12.0), False),
        (True, False),
        ("8x12", False),
    ],
)
def test_sizes_in_a_checkpoint_are_checked(size, good):
    if good:
        check_settings({"size": size})
    else:
        with pytest.raises(ValueError, match="size must be a side of a square or height and width"):
            check_settings({"size": size})
