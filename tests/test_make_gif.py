"""make_gif.py: from a trajectory to a GIF."""

import argparse

import imageio.v3 as imageio
import numpy as np
import pytest
from hostile import Bomb
from PIL import Image

import make_gif


def test_the_gif_shows_the_frames_as_they_are(tmp_path):
    """All frames have the same value range: a dull frame stays dull. Each t has its own caption."""
    frames = np.stack([np.full((3, 8, 8, 1), value, np.uint8) for value in (100, 110, 255)])
    np.savez(tmp_path / "trajectory.npz", frames=frames, times=np.array([1000, 500, 0]))
    assert (
        make_gif.main(
            [
                str(tmp_path / "trajectory.npz"),
                "--out",
                str(tmp_path / "x.gif"),
                "--fps",
                "10",
                "--hold",
                "1.5",
                "--scale",
                "2",
                "--columns",
                "3",
            ]
        )
        == 0
    )
    gif = imageio.imread(tmp_path / "x.gif", index=None)
    assert gif.shape[:1] == (3,)
    assert gif.shape[2] == 3 * (16 + 2) + 2
    for shown, value in zip(gif, (100, 110, 255)):
        assert np.abs(shown[4:16, 4:16].astype(int) - value).max() <= 2
        assert (shown[-18:] > 128).any()  # the caption
    assert len({(shown[-18:] > 128).tobytes() for shown in gif}) == 3  # of 1000, 500 and 0
    with Image.open(tmp_path / "x.gif") as image:
        durations = []
        for i in range(3):
            image.seek(i)
            durations.append(image.info["duration"])
    assert durations == [100, 100, 1500]
    assert not list(tmp_path.glob("*.tmp.*"))


def test_a_gif_of_a_real_trajectory(sampled, tmp_path):
    assert (
        make_gif.main([str(sampled / "trajectory.npz"), "--out", str(tmp_path / "new" / "x.gif")])
        == 0
    )
    assert len(imageio.imread(tmp_path / "new" / "x.gif", index=None)) == 8


@pytest.mark.parametrize("kind", ["missing", "text", "wrong", "pickle"])
def test_a_bad_trajectory_is_refused(refused, tmp_path, kind):
    file = tmp_path / "x.npz"
    if kind == "text":
        file.write_text("hello")
    elif kind == "wrong":
        np.savez(file, frames=np.zeros((2, 3)), times=np.zeros(2))
    elif kind == "pickle":
        np.savez(file, frames=np.array([Bomb(tmp_path / "marker")]), times=np.zeros(1, int))
    assert "x.npz" in refused(make_gif.main, file, "--out", tmp_path / "x.gif")
    assert not (tmp_path / "x.gif").exists()
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--fps", "0"], "above 0"),
        (["--columns", "0"], "at least 1"),
        (["--out", "x.avi"], "ends in .gif, .mp4, .webp, not"),
        (["--out", "/dev/null/x.gif"], "cannot write"),
    ],
)
def test_bad_gif_options_are_refused(refused, sampled, argv, said):
    assert said in refused(make_gif.main, sampled / "trajectory.npz", *argv)


@pytest.mark.parametrize("text", ["3", "0.5", ".5", "3."])
def test_numbers_above_0_are_read(text):
    assert make_gif.positive(text) == float(text)


@pytest.mark.parametrize("text", ["", ".", "-1", "nan", "inf", "0.0"])
def test_other_numbers_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number above 0"):
        make_gif.positive(text)
