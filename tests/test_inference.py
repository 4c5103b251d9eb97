"""Inference.py: from a checkpoint to pictures, from an image to noise, and what is refused."""

import pickle
import signal

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import ROOT
from hostile import malicious
from PIL import Image
from training_runs import (
    Process,
)

import Inference
import make_gif
from checkpoints.checkpoint import load_model
from checkpoints.checkpoint_file import read_checkpoint_file
from checkpoints.run_dir import newest_checkpoint
from DiffusionModel import DiffusionModel


def test_inference_killed_in_mid_write_gives_the_same_bytes_when_it_is_run_again(
    tiny_run, tmp_path
):
    def infer(folder, patch=""):
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); import Inference; {patch}\n"
            "sys.exit(Inference.main(sys.argv[1:]))"
        )
        arguments = [
            "--ckpt",
            tiny_run,
            "--out",
            tmp_path / folder,
            "--num",
            "20",
            "--device",
            "cpu",
        ]
        return Process(tmp_path, "-c", code, *arguments, script="").ends()

    torn = """
import os, numpy
def half(file, array, **options):
    file.write(b"half of it")
    os.kill(os.getpid(), 9)
numpy.lib.format.write_array = half"""
    assert infer("whole") == 0
    assert infer("killed", torn) == -signal.SIGKILL
    assert [p.suffix for p in (tmp_path / "killed").iterdir()] == [".npz"]
    assert next((tmp_path / "killed").iterdir()).name.startswith(".samples.tmp.")
    assert infer("killed") == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "killed").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()
    }


def infer(*argv) -> int:
    return Inference.main([str(a) for a in argv])


def test_output_files(sampled):
    steps = ("0000", "0001", "0010", "0020")
    assert {p.name for p in sampled.iterdir()} == {
        "trajectory.npz",
        "samples.npz",
        *(f"{kind}t{t}.png" for t in steps for kind in ("", "x0_")),
    }
    samples, trajectory = (
        np.load(sampled / "samples.npz")["arr_0"],
        np.load(sampled / "trajectory.npz"),
    )
    frames, times = trajectory["frames"], trajectory["times"]
    assert samples.dtype == frames.dtype == np.uint8
    assert samples.shape == (5, 8, 8, 3)
    assert times.tolist() == [20, 16, 12, 10, 8, 4, 1, 0]
    assert frames.shape == (8, 5, 8, 8, 3)
    assert np.array_equal(frames[-1], samples)
    assert len({f.tobytes() for f in frames[:, 0]}) == 8
    assert trajectory["predicted"].shape == frames.shape
    assert np.array_equal(trajectory["predicted"][-1], samples)


def test_pure_noise_has_the_value_range_of_images(sampled):
    """x_T is standard normal: clipped to [-1, 1], 16% of its values are black and 16% are white."""
    first = np.load(sampled / "trajectory.npz")["frames"][0]
    assert 0.11 < (first == 0).mean() < 0.21
    assert 0.11 < (first == 255).mean() < 0.21


def small_grid(file, width):
    """The grid in a PNG file, not enlarged. The enlarged width must be 512 to 1023 pixels."""
    grid = np.asarray(Image.open(file))
    assert 512 <= grid.shape[1] < 1024
    scale = grid.shape[1] // width
    small = grid[::scale, ::scale]
    assert np.array_equal(small.repeat(scale, axis=0).repeat(scale, axis=1), grid)
    return small


def test_the_pngs_are_the_frames(sampled):
    trajectory = np.load(sampled / "trajectory.npz")
    grid = small_grid(sampled / "t0010.png", width=2 * 10 + 2)
    frame = trajectory["frames"][trajectory["times"].tolist().index(10)]
    assert np.array_equal(grid[2:10, 2:10], frame[0])
    assert np.array_equal(grid[2:10, 12:20], frame[1])
    predicted = trajectory["predicted"][trajectory["times"].tolist().index(10)]
    assert np.array_equal(
        small_grid(sampled / "x0_t0010.png", 2 * 10 + 2)[2:10, 2:10], predicted[0]
    )
    assert not np.array_equal(predicted, frame)
    assert np.array_equal(
        np.asarray(Image.open(sampled / "x0_t0000.png")),
        np.asarray(Image.open(sampled / "t0000.png")),
    )


def test_an_image_is_the_same_in_any_batch_and_differs_from_the_others(sampled, tiny_run, tmp_path):
    infer("--ckpt", tiny_run, "--num", 5, "--out", tmp_path, "--batch-size", 5, "--frames", 0)
    one, other = (
        np.load(sampled / "samples.npz")["arr_0"],
        np.load(tmp_path / "samples.npz")["arr_0"],
    )
    assert np.abs(one.astype(int) - other).max() <= 1  # rounding of sums in another order
    assert len({image.tobytes() for image in one}) == 5
    infer("--ckpt", tiny_run, "--num", 2, "--out", tmp_path, "--seed", 1)
    assert not np.array_equal(np.load(tmp_path / "samples.npz")["arr_0"], one[:2])


@pytest.mark.parametrize(
    ("flags", "bf16"),
    [
        (("--precision", "32"), False),
        (("--precision", "bf16"), True),
        ((), True),
        (("--interpolate", "PHOTO", "PHOTO"), False),
    ],
)
def test_the_precision_is_that_of_the_flag_or_of_the_hardware(
    tiny_run, tmp_path, monkeypatch, flags, bf16
):
    from runtime import launcher
    from Unet import Unet

    seen, forward = [], Unet.forward
    monkeypatch.setattr(
        Unet,
        "forward",
        lambda self, *args: (seen.append(torch.is_autocast_enabled("cpu")), forward(self, *args))[
            1
        ],
    )
    monkeypatch.setattr(
        launcher, "pick_precision", lambda device, name: "32" if name == "32" else "bf16"
    )  # hardware that has it
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    flags = [tmp_path / "photo.png" if flag == "PHOTO" else flag for flag in flags]
    assert (
        infer("--ckpt", tiny_run, "--out", tmp_path / "out", "--num", 2, "--steps", 2, *flags) == 0
    )
    assert set(seen) == {bf16}


def test_ema_and_raw_weights_give_different_images(tiny_run, tmp_path):
    for weights in ("ema", "raw"):
        infer("--ckpt", tiny_run, "--num", 2, "--out", tmp_path / weights, "--weights", weights)
    assert not np.array_equal(
        *(np.load(tmp_path / w / "samples.npz")["arr_0"] for w in ("ema", "raw"))
    )


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16"])
def test_an_image_is_noised_at_its_own_size_without_a_checkpoint(tmp_path, mode):
    x, y = np.meshgrid(np.arange(90), np.arange(50))
    photo = (x * 2 + y).astype(np.uint8)
    (
        Image.fromarray(photo * np.uint16(257))
        if mode == "I;16"
        else Image.fromarray(photo).convert(mode)
    ).save(tmp_path / "photo.png")
    infer(
        "--input-image",
        tmp_path / "photo.png",
        "--save-steps",
        "0,50,500,1000",
        "--out",
        tmp_path / "out",
    )
    clean, little, half, noise = (
        np.asarray(Image.open(tmp_path / "out" / f"t{t:04d}.png").convert("L")).astype(float)
        for t in (0, 50, 500, 1000)
    )
    assert clean.shape == (50, 90)
    assert np.abs(clean - photo).max() <= 1
    correlation = [
        np.corrcoef(photo.ravel(), other.ravel())[0, 1] for other in (clean, little, half, noise)
    ]
    assert correlation[0] > 0.999
    assert correlation == sorted(correlation, reverse=True)
    assert correlation[1] > 0.8
    assert abs(correlation[3]) < 0.1
    assert np.load(tmp_path / "out" / "trajectory.npz")["times"][0] == 1000


def test_the_forward_process_without_a_checkpoint_has_a_length_and_a_schedule(tmp_path):
    common = ["--input-image", ROOT / "images" / "input.png", "--frames", 2, "--out"]
    words = ["--T", 1500, "--schedule", "cosine", "--save-steps", " 0, 500,1500, 500"]
    infer(*common, tmp_path / "out", *words)
    times = np.load(tmp_path / "out" / "trajectory.npz")["times"]
    assert times.tolist() == [1500, 500, 0]
    half = np.asarray(Image.open(tmp_path / "out" / "t0500.png")) / 127.5 - 1
    clean = np.asarray(Image.open(tmp_path / "out" / "t0000.png")) / 127.5 - 1
    signal = (half * clean).mean() / (clean**2).mean()
    model = DiffusionModel(T=1500, schedule="cosine")
    # pixels are clipped at 0 and 255, which removes some of the signal
    assert 0.6 * model.alpha_bar(500) ** 0.5 < signal < model.alpha_bar(500) ** 0.5


def test_the_folder_of_the_checkpoints_stands_for_the_run(tiny_run):
    assert load_model(tiny_run / "checkpoints").path == load_model(tiny_run).path


def test_several_classes_are_rows_of_one_grid(conditional_run, tmp_path):
    words = ["--class", "1, 0", "--num", 3, "--save-steps", 0, "--out", tmp_path / "out"]
    infer("--ckpt", conditional_run, *words)
    assert np.load(tmp_path / "out" / "samples.npz")["arr_1"].tolist() == [1, 0] * 3
    grid = small_grid(tmp_path / "out" / "t0000.png", width=3 * 10 + 2)
    assert grid.shape == (2 * 10 + 2, 3 * 10 + 2, 3)


def test_an_image_is_noised_to_the_start_step_and_denoised(tiny_run, tmp_path, capsys):
    Image.new("RGB", (30, 20), (250, 10, 10)).save(tmp_path / "red.png")
    infer(
        "--ckpt",
        tiny_run,
        "--input-image",
        tmp_path / "red.png",
        "--start-step",
        1,
        "--num",
        3,
        "--out",
        tmp_path / "near",
    )
    fit = f"{tmp_path / 'red.png'}: 30x20, resized and cropped to 8x8 (width x height)"
    assert fit in capsys.readouterr().out.splitlines()
    near = np.load(tmp_path / "near" / "samples.npz")["arr_0"].astype(int)
    assert near.shape == (3, 8, 8, 3)
    assert (
        np.abs(near - [250, 10, 10]).mean() < 12
    )  # one step of little noise: the image is still there
    assert np.load(tmp_path / "near" / "trajectory.npz")["times"].tolist() == [1, 0]


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "empty",
        "text",
        "truncated",
        "foreign",
        "malicious",
        "malicious pickle",
        "hostile",
        "nan",
        "shape",
        "other weights",
        "setting",
        "directory",
    ],
)
def test_bad_checkpoints_are_refused(refused, tiny_run, tmp_path, kind):
    file, marker = tmp_path / "x.ckpt", tmp_path / "marker"
    good = newest_checkpoint(tiny_run)
    content = torch.load(good, weights_only=True)
    first = next(iter(content["ema"]["weights"]))
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "text":
        file.write_text("hello")
    elif kind == "truncated":
        file.write_bytes(good.read_bytes()[:-2000])
    elif kind == "foreign":
        torch.save({"model": torch.zeros(3)}, file)
    elif kind == "malicious":
        torch.save(malicious(marker), file)
    elif kind == "malicious pickle":
        file.write_bytes(pickle.dumps(malicious(marker)))
    elif kind == "directory":
        file.mkdir()
    elif kind != "missing":
        if kind == "hostile":
            content["hyper_parameters"]["width"] = 10**9
        elif kind == "nan":
            content["ema"]["weights"][first][0] = float("nan")
        elif kind == "shape":
            content["ema"]["weights"][first] = torch.zeros(1)
        elif kind == "other weights":
            content["ema"]["weights"]["extra"] = torch.zeros(1)
        elif kind == "setting":
            content["hyper_parameters"]["parameterization"] = "score"
        torch.save(content, file)
    line = refused(Inference.main, "--ckpt", file, "--out", tmp_path / "out")
    assert "x.ckpt" in line
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_the_bomb_would_go_off(tmp_path):
    """The marker of the malicious file appears where a file is read without care: the test above
    can fail."""
    torch.save(malicious(tmp_path / "marker"), tmp_path / "x.ckpt")
    torch.load(tmp_path / "x.ckpt", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "give --ckpt"),
        (["--ckpt", "RUN", "--save-steps", "21"], "--save-steps 21 is past t = 20"),
        (["--ckpt", "RUN", "--save-steps", "abc"], "separated by commas"),
        (["--ckpt", "RUN", "--save-steps", "-1"], "not '-1'"),
        (["--ckpt", "RUN", "--num", "0"], "at least 1"),
        (["--ckpt", "RUN", "--batch-size", "0"], "at least 1"),
        (["--ckpt", "RUN", "--start-step", "5"], "--start-step needs the image: add --input-image"),
        (["--ckpt", "RUN", "--input-image", "PHOTO"], "--input-image goes with --start-step"),
        (["--ckpt", "RUN", "--input-image", "PHOTO", "--start-step", "21"], "past T = 20"),
        (["--input-image", "PHOTO", "--save-steps", "2000"], "--save-steps 2000 is past t = 1000"),
        (["--input-image", "PHOTO", "--save-steps", "1500"], "or give --T 1500"),
        (["--input-image", "PHOTO", "--T", "200000"], "--T must be a whole number from 1 to"),
        (["--input-image", "PHOTO", "--schedule", "cosin"], "did you mean cosine?"),
        (["--ckpt", "RUN", "--T", "500"], "with --ckpt, --T is that of the model"),
        (["RUN"], "did you mean --ckpt "),
        (["--input-image", "PHOTO", "--start-step", "5"], "add --ckpt"),
        (["--input-image", "NOPHOTO"], "no.png is not an image that can be read: give another"),
        (["--input-image", "/no/such.png"], "no image at"),
        (["--input-image", "PHOTO", "--out", "/dev/null/x"], "/dev/null/x"),
        (["--input-image", "PHOTO", "--out", "PHOTO"], "choose another path"),
    ],
)
def test_bad_input_gives_a_one_line_error_and_status_2(refused, tiny_run, tmp_path, argv, said):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    (tmp_path / "no.png").write_text("no image")
    paths = {"RUN": tiny_run, "PHOTO": tmp_path / "photo.png", "NOPHOTO": tmp_path / "no.png"}
    argv = [paths.get(a, a) for a in argv]
    line = refused(Inference.main, *argv, *([] if "--out" in argv else ["--out", tmp_path / "out"]))
    assert said in line
    assert not (tmp_path / "out").exists()


def test_an_unwritable_folder_is_refused(refused, tiny_run):
    assert "/proc/out" in refused(Inference.main, "--ckpt", tiny_run, "--out", "/proc/out")


@pytest.mark.parametrize(
    "options",
    [
        ["ddpm"],
        ["ddpm", "--variance", "small", "--steps", "7"],
        ["ddim"],
        ["ddim", "--eta", "0.5"],
        ["heun"],
        ["dpm++", "--grid", "log-snr"],
        ["unipc", "--steps", "3"],
    ],
)
def test_every_sampler_stops_at_saved_steps_and_gives_the_same_image_in_any_batch(
    tiny_run, tmp_path, options
):
    for size in (1, 3):
        infer(
            "--ckpt",
            tiny_run,
            "--num",
            3,
            "--out",
            tmp_path / str(size),
            "--batch-size",
            size,
            "--save-steps",
            "0,3,17,20",
            "--sampler",
            *options,
        )
    one, three = (np.load(tmp_path / size / "trajectory.npz") for size in "13")
    assert {0, 3, 17, 20} <= set(one["times"].tolist())
    if "ddpm" in options and "--steps" not in options:
        assert one["times"].tolist() == list(range(20, -1, -1))  # the paper's
    assert np.abs(one["frames"].astype(int) - three["frames"]).max() <= 1
    assert np.array_equal(one["frames"][-1], np.load(tmp_path / "1" / "samples.npz")["arr_0"])


def test_samples_of_a_chosen_class(conditional_run, tmp_path):
    def mean(name, *argv):
        infer(
            "--ckpt",
            conditional_run,
            "--num",
            4,
            "--out",
            tmp_path / name,
            "--weights",
            "raw",
            *argv,
        )
        return np.load(tmp_path / name / "samples.npz")

    zero, one, none = (
        mean("zero", "--class", 0),
        mean("one", "--class", "1", "--guidance", 2),
        mean("none", "--class", "none"),
    )
    assert mean("each")["arr_1"].tolist() == [0, 1, 0, 1]
    assert zero["arr_1"].tolist() == [0] * 4
    assert one["arr_1"].tolist() == [1] * 4
    assert "arr_1" not in none
    images = {
        part["arr_0"].tobytes()
        for part in (
            zero,
            one,
            none,
            mean("weak", "--class", 1),
            mean("part", "--class", "1", "--guidance", 2, "--guidance-interval", "5,10"),
        )
    }
    assert len(images) == 5


def test_all_classes_are_rows_of_one_grid(conditional_run, tmp_path):
    infer(
        "--ckpt",
        conditional_run,
        "--class",
        "all",
        "--num",
        3,
        "--out",
        tmp_path / "all",
        "--save-steps",
        "0",
    )
    samples, trajectory = (
        np.load(tmp_path / "all" / "samples.npz"),
        np.load(tmp_path / "all" / "trajectory.npz"),
    )
    assert samples["arr_1"].tolist() == [0, 1] * 3
    grid = small_grid(tmp_path / "all" / "t0000.png", width=3 * 10 + 2)
    assert grid.shape == (2 * 10 + 2, 3 * 10 + 2, 3)
    for i in range(6):
        row, column = i % 2, i // 2
        assert np.array_equal(
            grid[2 + 10 * row : 10 + 10 * row, 2 + 10 * column : 10 + 10 * column],
            samples["arr_0"][i],
        )
    infer(
        "--ckpt",
        conditional_run,
        "--class",
        "1",
        "--num",
        6,
        "--out",
        tmp_path / "one",
        "--save-steps",
        "0",
    )
    assert (
        np.abs(
            np.load(tmp_path / "one" / "samples.npz")["arr_0"][5].astype(int) - samples["arr_0"][5]
        ).max()
        <= 1
    )
    assert (
        make_gif.main(
            [
                str(tmp_path / "all" / "trajectory.npz"),
                "--out",
                str(tmp_path / "x.gif"),
                "--scale",
                "1",
            ]
        )
        == 0
    )
    assert imageio.imread(tmp_path / "x.gif", index=0).shape[1] == 3 * 10 + 2
    assert trajectory["columns"] == 3


def test_the_ema_length_can_be_chosen_after_training(conditional_run, tmp_path):
    from checkpoints.run_dir import newest_checkpoint

    kept = read_checkpoint_file(newest_checkpoint(conditional_run))["power"]
    for i, length in enumerate((0.05, 0.1)):
        found = load_model(conditional_run, length=length).model.unet.state_dict()
        assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in kept[i].items())
    samples = []
    for length in (0.05, 0.07):
        infer(
            "--ckpt", conditional_run, "--num", 2, "--ema-length", length, "--out", tmp_path / "x"
        )
        samples.append(np.load(tmp_path / "x" / "samples.npz")["arr_0"])
    assert not np.array_equal(*samples)


def picture(path, seed=0, size=8):
    array = np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)
    Image.fromarray(array).save(path)
    return array


def test_the_summary_has_the_number_of_evaluations_but_not_for_repaint(
    conditional_run, tmp_path, capsys
):
    picture(tmp_path / "image.png")
    words = ["--ckpt", conditional_run, "--class", 1, "--guidance", 2, "--steps", 5, "--num", 1]
    infer(*words, "--out", tmp_path / "out")
    assert "guidance 2 away from" in (said := capsys.readouterr().out)
    assert " network evaluations per image" in said
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 3:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words += ["--input-image", tmp_path / "image.png", "--mask", tmp_path / "mask.png"]
    infer(*words, "--out", tmp_path / "repainted")
    assert "guidance 2 away from" in (said := capsys.readouterr().out)
    assert "evaluations" not in said


def test_pixels_are_kept_where_the_mask_is_black(tiny_run, tmp_path):
    image, mask = picture(tmp_path / "image.png"), np.zeros((8, 8), np.uint8)
    mask[2:5, 3:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    infer(
        "--ckpt",
        tiny_run,
        "--input-image",
        tmp_path / "image.png",
        "--mask",
        tmp_path / "mask.png",
        "--num",
        3,
        "--steps",
        10,
        "--out",
        tmp_path / "out",
    )
    samples = np.load(tmp_path / "out" / "samples.npz")["arr_0"]
    assert (samples[:, mask == 0] == image[mask == 0]).all()
    assert (samples[:, mask > 0] != image[mask > 0]).mean() > 0.9
    assert len({s.tobytes() for s in samples}) == 3


def test_interpolation_begins_and_ends_with_the_images(tiny_run, tmp_path):
    ends = [picture(tmp_path / f"{name}.png", seed) for seed, name in enumerate("ab")]
    infer(
        "--ckpt",
        tiny_run,
        "--interpolate",
        tmp_path / "a.png",
        tmp_path / "b.png",
        "--num",
        5,
        "--out",
        tmp_path / "out",
        "--steps",
        20,
    )
    samples = np.load(tmp_path / "out" / "samples.npz")["arr_0"].astype(int)
    assert np.abs(samples[0] - ends[0]).max() <= 3
    assert np.abs(samples[-1] - ends[1]).max() <= 3
    assert len({s.tobytes() for s in samples}) == 5


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--class", "0"], "has no classes: train one with --class-conditional"),
        (["--guidance", "2"], "needs a model trained with --class-conditional"),
        (["--eta", "0.5"], "add --sampler ddim"),
        (["--evaluations", "9", "--steps", "5"], "--evaluations does not go with --steps"),
        (["--sampler", "heun", "--eta", "0.5"], "add --sampler ddim"),
        (["--sampler", "ddim", "--variance", "small"], "add --sampler ddpm"),
        (["--sampler", "ddpm", "--variance", "learned"], "needs a model trained with it"),
        (["--steps", "21"], "choose from 1 to 20 steps"),
        (["--steps", "0"], "at least 1"),
        (["--sampler", "exact"], "invalid choice 'exact': choose from ddpm, ddim, heun, dpm++"),
        (["--ema-length", "0.1"], "train with --posthoc-ema"),
        (["--ema-length", "0.5"], "from 0.01 to 0.25"),
        (["--mask", "PHOTO"], "add --input-image"),
        (["--mask", "PHOTO", "--input-image", "PHOTO"], "black all over"),
        (["--mask", "PHOTO", "--input-image", "PHOTO", "--start-step", "5"], "choose one"),
        (
            ["--mask", "PHOTO", "--input-image", "PHOTO", "--sampler", "heun"],
            "works with --sampler ddpm alone",
        ),
        (["--interpolate", "PHOTO", "PHOTO", "--precision", "bf16"], "which needs float32"),
        (
            ["--interpolate", "PHOTO", "PHOTO", "--sampler", "unipc"],
            "works with --sampler ddim alone",
        ),
        (["--interpolate", "PHOTO", "PHOTO", "--input-image", "PHOTO"], "goes with --start-step"),
        (["--interpolate", "PHOTO", "NOPHOTO"], "not an image that can be read: give another"),
        (["--class", "0", "--guidance-interval", "9,3"], "the lower first"),
        (["--guidance-interval", "3,9"], "add --guidance"),
        (["--guidance", "1", "--guide-with", "auto"], "--guidance 1 is no guidance"),
        (["--guide-with", "labels"], "needs a model trained with --class-conditional"),
        (["--guide-with", "label"], "did you mean labels?"),
        (["--guide-with", "auto"], "keeps no early average"),
        (["--guide-with", "nosuch.ckpt"], "no checkpoint at nosuch.ckpt"),
        (["--interpolate", "PHOTO", "PHOTO", "--class", "all"], "one class or none"),
    ],
)
def test_conflicting_flags_give_a_one_line_error_and_status_2(
    refused, tiny_run, tmp_path, argv, said
):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    (tmp_path / "no.png").write_text("no image")
    paths = {"PHOTO": tmp_path / "photo.png", "NOPHOTO": tmp_path / "no.png"}
    assert said in refused(
        Inference.main,
        "--ckpt",
        tiny_run,
        *(paths.get(a, a) for a in argv),
        "--out",
        tmp_path / "out",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("2", "Give all, numbers from 0 to 1"),
        ("0,2", "unknown class '2'"),
        ("-1", "unknown class"),
        ("on", "unknown class"),
    ],
)
def test_unknown_classes_are_refused(refused, conditional_run, tmp_path, label, said):
    assert said in refused(
        Inference.main, "--ckpt", conditional_run, f"--class={label}", "--out", tmp_path / "out"
    )


def test_flags_that_need_a_model_are_refused_without_one(refused, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    for flag in (
        ["--sampler", "ddim"],
        ["--steps", "5"],
        ["--class", "1"],
        ["--mask", tmp_path / "photo.png"],
        ["--guidance", "2"],
    ):
        assert f"{flag[0]} needs a model" in refused(
            Inference.main, "--input-image", tmp_path / "photo.png", *flag
        )


def test_pictures_of_an_earlier_run_are_removed(tiny_run, tmp_path):
    out = tmp_path / "out"
    assert (
        Inference.main(
            ["--ckpt", str(tiny_run), "--num", "2", "--out", str(out), "--save-steps", "0,3,20"]
        )
        == 0
    )
    (out / "mine.png").touch()
    assert (
        Inference.main(
            ["--ckpt", str(tiny_run), "--num", "2", "--out", str(out), "--save-steps", "0,5"]
        )
        == 0
    )
    assert sorted(p.name for p in out.glob("*.png")) == [
        "mine.png",
        "t0000.png",
        "t0005.png",
        "x0_t0000.png",
        "x0_t0005.png",
    ]
