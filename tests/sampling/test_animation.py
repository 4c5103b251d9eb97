"""Animations: the pixels of every frame, their durations, and files that players show."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import make_gif
from sampling import animation
from sampling.animation import draw_frame
from sampling.trajectory import read_trajectory


@pytest.fixture
def trajectory(tmp_path) -> Path:
    """4 frames of three coloured 5x7 images, at an odd size with --scale 1, 3 columns: 25 x 31."""
    frames = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 7, 3)).astype(np.uint8)
    np.savez(tmp_path / "t.npz", frames=frames, times=np.array([9, 6, 3, 0]))
    return tmp_path / "t.npz"


def pictures(trajectory: Path, scale: int) -> np.ndarray:
    found = read_trajectory(trajectory)
    frames = zip(found.frames, found.times)
    return np.stack([draw_frame(images, t, 3, scale) for images, t in frames])


def test_a_webp_has_every_colour_and_its_durations(trajectory, tmp_path):
    assert (
        make_gif.main(
            [
                str(trajectory),
                "--out",
                str(tmp_path / "x.webp"),
                "--fps",
                "10",
                "--hold",
                "1.5",
                "--scale",
                "1",
                "--columns",
                "3",
            ]
        )
        == 0
    )
    with Image.open(tmp_path / "x.webp") as image:
        assert image.format == "WEBP"
        assert image.info["loop"] == 0
        found, durations = [], []
        for i in range(image.n_frames):
            image.seek(i)
            found.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
    assert np.array_equal(np.stack(found), pictures(trajectory, 1))
    assert durations == [100, 100, 100, 1500]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("fps", ["10", "7.5"])
def test_an_mp4_is_what_players_take_and_nearly_the_pictures(trajectory, tmp_path, fps):
    file = tmp_path / "x.mp4"
    assert (
        make_gif.main(
            [
                str(trajectory),
                "--out",
                str(file),
                "--fps",
                fps,
                "--hold",
                "1.6",
                "--scale",
                "8",
                "--columns",
                "3",
            ]
        )
        == 0
    )
    expected = pictures(trajectory, 8)
    with av.open(str(file)) as video:
        stream = video.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.color_range, context.colorspace) == (
            "h264",
            "yuv420p",
            1,
            1,
        )
        assert context.width % 2 == context.height % 2 == 0
        assert float(stream.average_rate) == float(fps)
        found = np.stack(
            [
                frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
                for frame in video.decode(stream)
            ]
        )
    assert len(found) == 3 + round(1.6 * float(fps))
    H, W = expected.shape[1:3]
    assert found.shape[1:] == (H + H % 2, W + W % 2, 3)
    held = np.concatenate([expected, expected[-1:].repeat(len(found) - 4, 0)])
    inside = np.abs(found[:, :H, :W].astype(int) - held)[
        :, 4:8, 4:8
    ]  # the middle of the first pixel
    assert inside.max() <= 12
    head = file.read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")  # plays before all of it is there
    assert not list(tmp_path.glob(".*"))


def test_every_kind_holds_the_last_frame_and_leaves_an_older_file_alone_where_it_fails(
    refused, trajectory, tmp_path, monkeypatch
):
    for kind in make_gif.SUFFIXES:
        file = tmp_path / f"x{kind}"
        file.write_text("old")
        writer = "write_video" if kind == ".mp4" else "write_gif_or_webp"

        def fail(path, *_):
            path.write_text("half")
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(animation, writer, fail)
            assert "No space left on device" in refused(make_gif.main, trajectory, "--out", file)
        assert file.read_text() == "old"
        assert not list(tmp_path.glob(".*"))
        assert make_gif.main([str(trajectory), "--out", str(file)]) == 0
        assert file.stat().st_size > 500
