"""Checkpoint -> pictures, image -> noise, trajectory -> GIF, and everything that must be refused."""

import os
import pickle
import zipfile

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

import Inference
import make_gif
import RunFolder


def infer(*argv) -> int:
    return Inference.main([str(a) for a in argv])


@pytest.fixture(scope="module")
def out(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    assert infer("--ckpt", tiny_run, "--num", 5, "--out", folder, "--save-steps", "0,1,10,20", "--frames", 6, "--batch-size", 2) == 0
    return folder


def test_it_writes_what_it_promises(out):
    steps = ("0000", "0001", "0010", "0020")
    assert {p.name for p in out.iterdir()} == {"trajectory.npz", "samples.npz", *(f"{kind}t{t}.png" for t in steps for kind in ("", "x0_"))}
    samples, trajectory = np.load(out / "samples.npz")["arr_0"], np.load(out / "trajectory.npz")
    frames, times = trajectory["frames"], trajectory["times"]
    assert samples.dtype == frames.dtype == np.uint8
    assert samples.shape == (5, 8, 8, 3)
    assert times.tolist() == [20, 16, 12, 10, 8, 4, 1, 0]
    assert frames.shape == (8, 5, 8, 8, 3)
    assert np.array_equal(frames[-1], samples)
    assert len({f.tobytes() for f in frames[:, 0]}) == 8


def test_pure_noise_has_the_one_value_range(out):
    """x_T is standard normal; in the range [-1, 1], 16% of its values are black and 16% white."""
    first = np.load(out / "trajectory.npz")["frames"][0]
    assert 0.11 < (first == 0).mean() < 0.21
    assert 0.11 < (first == 255).mean() < 0.21


def test_the_pngs_are_the_frames(out):
    trajectory = np.load(out / "trajectory.npz")
    grid = np.asarray(Image.open(out / "t0010.png"))
    frame = trajectory["frames"][trajectory["times"].tolist().index(10)]
    assert np.array_equal(grid[2:10, 2:10], frame[0])
    assert np.array_equal(grid[2:10, 12:20], frame[1])
    assert np.array_equal(np.asarray(Image.open(out / "x0_t0000.png")), np.asarray(Image.open(out / "t0000.png")))


def test_an_image_is_the_same_in_any_batch_and_all_differ(out, tiny_run, tmp_path):
    infer("--ckpt", tiny_run, "--num", 5, "--out", tmp_path, "--batch-size", 5, "--frames", 0)
    one, other = np.load(out / "samples.npz")["arr_0"], np.load(tmp_path / "samples.npz")["arr_0"]
    assert np.abs(one.astype(int) - other).max() <= 1            # rounding of sums in another order
    assert len({image.tobytes() for image in one}) == 5
    infer("--ckpt", tiny_run, "--num", 2, "--out", tmp_path, "--seed", 1)
    assert not np.array_equal(np.load(tmp_path / "samples.npz")["arr_0"], one[:2])


def test_twice_is_the_same_bytes(tiny_run, tmp_path):
    for name in ("a", "b"):
        infer("--ckpt", tiny_run, "--num", 2, "--out", tmp_path / name)
    for file in (tmp_path / "a").glob("*.png"):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert np.array_equal(*(np.load(tmp_path / name / "trajectory.npz")["frames"] for name in "ab"))


def test_ema_and_raw_weights_give_other_images(tiny_run, tmp_path):
    for weights in ("ema", "raw"):
        infer("--ckpt", tiny_run, "--num", 2, "--out", tmp_path / weights, "--weights", weights)
    assert not np.array_equal(*(np.load(tmp_path / w / "samples.npz")["arr_0"] for w in ("ema", "raw")))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16"])
def test_an_image_is_noised_at_its_own_size_without_a_checkpoint(tmp_path, mode):
    x, y = np.meshgrid(np.arange(90), np.arange(50))
    photo = (x * 2 + y).astype(np.uint8)
    (Image.fromarray(photo * np.uint16(257)) if mode == "I;16" else Image.fromarray(photo).convert(mode)).save(tmp_path / "photo.png")
    infer("--input-image", tmp_path / "photo.png", "--save-steps", "0,50,500,1000", "--out", tmp_path / "out")
    clean, little, half, noise = (np.asarray(Image.open(tmp_path / "out" / f"t{t:04d}.png").convert("L")).astype(float)
                                  for t in (0, 50, 500, 1000))
    assert clean.shape == (50, 90)
    assert np.abs(clean - photo).max() <= 1
    correlation = [np.corrcoef(photo.ravel(), other.ravel())[0, 1] for other in (clean, little, half, noise)]
    assert correlation[0] > 0.999
    assert correlation == sorted(correlation, reverse=True)
    assert correlation[1] > 0.8
    assert abs(correlation[3]) < 0.1
    assert np.load(tmp_path / "out" / "trajectory.npz")["times"][0] == 1000


def test_an_image_is_noised_to_the_start_step_and_denoised(tiny_run, tmp_path):
    Image.new("RGB", (30, 20), (250, 10, 10)).save(tmp_path / "red.png")
    infer("--ckpt", tiny_run, "--input-image", tmp_path / "red.png", "--start-step", 1, "--num", 3, "--out", tmp_path / "near")
    near = np.load(tmp_path / "near" / "samples.npz")["arr_0"].astype(int)
    assert near.shape == (3, 8, 8, 3)
    assert np.abs(near - [250, 10, 10]).mean() < 12              # one step of little noise: the image is still there
    assert np.load(tmp_path / "near" / "trajectory.npz")["times"].tolist() == [1, 0]


def malicious(marker):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)
    return {"hyper_parameters": {}, "state_dict": {}, "ema": Bomb(), "course": {}, "global_step": 1}


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "foreign", "malicious", "malicious pickle", "hostile", "nan",
                                  "shape", "other weights", "setting", "directory"])
def test_bad_checkpoints_are_refused(refused, tiny_run, tmp_path, kind):
    file, marker = tmp_path / "x.ckpt", tmp_path / "marker"
    good = RunFolder.newest(tiny_run)
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
    """The marker of the malicious file appears where a file is read without care: the test above can fail."""
    torch.save(malicious(tmp_path / "marker"), tmp_path / "x.ckpt")
    torch.load(tmp_path / "x.ckpt", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(("argv", "said"), [
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
    (["--input-image", "PHOTO", "--start-step", "5"], "add --ckpt"),
    (["--input-image", "NOPHOTO"], "cannot be read as an image"),
    (["--input-image", "/no/such.png"], "no image at"),
    (["--input-image", "PHOTO", "--out", "/dev/null/x"], "/dev/null/x"),
    (["--input-image", "PHOTO", "--out", "PHOTO"], "choose a place"),
])
def test_bad_input_is_one_line_and_status_2(refused, tiny_run, tmp_path, argv, said):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    (tmp_path / "no.png").write_text("no image")
    places = {"RUN": tiny_run, "PHOTO": tmp_path / "photo.png", "NOPHOTO": tmp_path / "no.png"}
    argv = [places.get(a, a) for a in argv]
    line = refused(Inference.main, *argv, *([] if "--out" in argv else ["--out", tmp_path / "out"]))
    assert said in line
    assert not (tmp_path / "out").exists()


def test_an_unwritable_folder_is_refused(refused, tiny_run):
    assert "/proc/out" in refused(Inference.main, "--ckpt", tiny_run, "--out", "/proc/out")


def test_the_gif_shows_the_frames_as_they_are(tmp_path):
    """Every frame in the one value range: a dull frame stays dull, and captions have t."""
    frames = np.stack([np.full((3, 8, 8, 1), value, np.uint8) for value in (100, 110, 255)])
    np.savez(tmp_path / "trajectory.npz", frames=frames, times=np.array([1000, 500, 0]))
    assert make_gif.main([str(tmp_path / "trajectory.npz"), "--out", str(tmp_path / "x.gif"), "--fps", "10", "--hold", "1.5",
                          "--scale", "2", "--columns", "3"]) == 0
    gif = imageio.imread(tmp_path / "x.gif", index=None)
    assert gif.shape[:1] == (3,)
    assert gif.shape[2] == 3 * (16 + 2) + 2
    for shown, value in zip(gif, (100, 110, 255)):
        assert np.abs(shown[4:16, 4:16].astype(int) - value).max() <= 2
        assert (shown[-18:] > 128).any()                          # the caption
    with Image.open(tmp_path / "x.gif") as image:
        durations = []
        for i in range(3):
            image.seek(i)
            durations.append(image.info["duration"])
    assert durations == [100, 100, 1500]
    assert not list(tmp_path.glob("*.tmp.*"))


def test_a_gif_of_a_real_trajectory(out, tmp_path):
    assert make_gif.main([str(out / "trajectory.npz"), "--out", str(tmp_path / "new" / "x.gif")]) == 0
    assert len(imageio.imread(tmp_path / "new" / "x.gif", index=None)) == 8


@pytest.mark.parametrize("kind", ["missing", "text", "wrong", "pickle"])
def test_a_bad_trajectory_is_refused(refused, tmp_path, kind):
    file = tmp_path / "x.npz"
    if kind == "text":
        file.write_text("hello")
    elif kind == "wrong":
        np.savez(file, frames=np.zeros((2, 3)), times=np.zeros(2))
    elif kind == "pickle":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("frames.npy", pickle.dumps(malicious(tmp_path / "marker")))
    assert "x.npz" in refused(make_gif.main, file, "--out", tmp_path / "x.gif")
    assert not (tmp_path / "x.gif").exists()
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(("argv", "said"), [(["--fps", "0"], "above 0"), (["--columns", "0"], "at least 1"),
                                            (["--out", "x.mp4"], "must end in .gif"), (["--out", "/dev/null/x.gif"], "cannot write")])
def test_bad_gif_options_are_refused(refused, out, argv, said):
    assert said in refused(make_gif.main, out / "trajectory.npz", *argv)
