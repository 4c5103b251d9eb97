"""Animations: the pixels of every frame, their durations, and files that players show."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import make_gif
from sampling import animation
from sampling.animation import AnimationSettings, draw_frame, write_animation
from sampling.trajectory import read_trajectory


@pytest.fixture
def trajectory(tmp_path) -> Path:
    """4 frames of three coloured 5x7 images; with --scale 1 --columns 3 a frame is 31x29."""
    frames = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 7, 3)).astype(np.uint8)
    np.savez(tmp_path / "t.npz", frames=frames, times=np.array([9, 6, 3, 0]))
    return tmp_path / "t.npz"


def expected_frames(trajectory: Path, scale: int) -> np.ndarray:
    read = read_trajectory(trajectory)
    frames = zip(read.frames, read.times)
    return np.stack([draw_frame(images, t, 3, scale) for images, t in frames])


def test_a_frame_has_every_image_in_its_place(trajectory):
    images = read_trajectory(trajectory).frames[0]
    frame = draw_frame(images, 9, columns=2, scale=2)
    assert frame.shape == (2 * (5 * 2 + 2) + 2 + 22, 2 * (7 * 2 + 2) + 2, 3)
    for i, (top, left) in enumerate(((2, 2), (2, 18), (14, 2))):
        assert np.array_equal(frame[top : top + 10 : 2, left : left + 14 : 2], images[i])
        assert np.array_equal(frame[top + 1 : top + 10 : 2, left + 1 : left + 14 : 2], images[i])
    assert not frame[14:24, 18:].any()  # no fourth image
    assert frame[-22:].any()  # the caption
    gray = draw_frame(images[..., :1], 9, columns=0, scale=1)
    assert np.array_equal(gray[2:7, 2:9], images[0][..., :1].repeat(3, axis=2))


def test_the_grid_has_the_columns_of_the_trajectory_by_default(trajectory, tmp_path):
    read = read_trajectory(trajectory)
    np.savez(tmp_path / "c.npz", frames=read.frames, times=read.times, columns=3)
    for file, columns, width in (("t", None, 1), ("c", None, 3), ("c", 1, 1), ("t", 9, 3)):
        out = tmp_path / "x.webp"
        settings = AnimationSettings(tmp_path / f"{file}.npz", out, scale=1, columns=columns)
        assert write_animation(settings) == 4
        with Image.open(out) as image:
            assert image.width == width * (7 + 2) + 2


def test_a_webp_has_every_colour_and_its_durations(trajectory, tmp_path):
    flags = "--fps 10 --hold 1.5 --scale 1 --columns 3".split()
    assert make_gif.main([str(trajectory), "--out", str(tmp_path / "x.webp"), *flags]) == 0
    with Image.open(tmp_path / "x.webp") as image:
        assert image.format == "WEBP"
        assert image.info["loop"] == 0
        frames, durations = [], []
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
    assert np.array_equal(np.stack(frames), expected_frames(trajectory, 1))
    assert durations == [100, 100, 100, 1500]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("fps", ["10", "7.5"])
def test_an_mp4_suits_players_and_nearly_keeps_the_first_pixel(trajectory, tmp_path, fps):
    file = tmp_path / "x.mp4"
    flags = f"--fps {fps} --hold 1.6 --scale 9 --columns 3".split()  # 71x197
    assert make_gif.main([str(trajectory), "--out", str(file), *flags]) == 0
    expected = expected_frames(trajectory, 9)
    with av.open(str(file)) as video:
        stream = video.streams.video[0]
        context = stream.codec_context
        assert context.name == "h264"
        assert context.pix_fmt == "yuv420p"
        assert (context.color_range, context.colorspace) == (1, 1)
        assert context.width % 2 == context.height % 2 == 0
        assert float(stream.average_rate) == float(fps)
        frames = [
            frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
            for frame in video.decode(stream)
        ]
    assert len(frames) == 3 + round(1.6 * float(fps))
    H, W = expected.shape[1:3]
    assert frames[0].shape == (H + H % 2, W + W % 2, 3)
    held = [*expected, *expected[-1:].repeat(len(frames) - 4, 0)]
    for frame, pixels in zip(frames, held):
        inside = slice(4, 8)  # the middle of the first pixel
        error = np.abs(frame[inside, inside].astype(int) - pixels[inside, inside])
        assert error.max() <= 12
    head = file.read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")  # plays before all of it has arrived
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("suffix", make_gif.SUFFIXES)
def test_a_failure_leaves_an_older_file_as_it_was(
    refused, trajectory, tmp_path, monkeypatch, suffix
):
    file = tmp_path / f"x{suffix}"
    file.write_text("old")

    def fail(path, *_):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        for writer in ("write_video", "write_gif_or_webp"):
            patched.setattr(animation, writer, fail)
        assert "No space left on device" in refused(make_gif.main, trajectory, "--out", file)
    assert file.read_text() == "old"
    assert not list(tmp_path.glob(".*"))
    assert make_gif.main([str(trajectory), "--out", str(file)]) == 0
    assert file.stat().st_size > 500


def test_without_pyav_an_mp4_is_refused_and_a_gif_is_not(
    refused, trajectory, tmp_path, monkeypatch
):
    monkeypatch.setattr(animation, "av", None)
    out = tmp_path / "x.mp4"
    assert "an .mp4 needs PyAV: pip install av" in refused(make_gif.main, trajectory, "--out", out)
    assert make_gif.main([str(trajectory), "--out", str(tmp_path / "x.gif")]) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"t.npz", "x.gif"}
