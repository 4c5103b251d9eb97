"""Images in a terminal, as half blocks."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import Inference
from runtime import terminal


class Screen(io.StringIO):
    def __init__(self, encoding: str = "utf-8", tty: bool = True):
        super().__init__()
        self.tty, self.name_of_encoding = tty, encoding

    encoding = property(lambda self: self.name_of_encoding)

    def isatty(self) -> bool:
        return self.tty


TRUE = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}


def pixels(text: str) -> np.ndarray:
    """Read half blocks of 24 bits back into pixels: (2 * lines, columns, 3).

    Where a character has no background, the pixel is -1.
    """
    rows = []
    for line in filter(lambda line: "▀" in line, text.splitlines()):
        cells = re.findall(r"\033\[38;2;(\d+);(\d+);(\d+)(?:;48;2;(\d+);(\d+);(\d+))?m▀", line)
        assert len(cells) == line.count("▀")
        assert line.endswith("\033[0m")
        rows += [
            [[int(v) for v in cell[:3]] for cell in cells],
            [[int(v or -1) for v in cell[3:]] for cell in cells],
        ]
    return np.array(rows)


@pytest.mark.parametrize(
    ("environment", "screen", "depth"),
    [
        (TRUE, Screen(), 2**24),
        ({"TERM": "xterm-256color"}, Screen(), 256),
        ({"TERM": "xterm-direct"}, Screen(), 2**24),
        ({"TERM": "vt100"}, Screen(), 0),
        ({}, Screen(), 0),
        ({**TRUE, "TERM": "dumb"}, Screen(), 0),
        ({**TRUE, "NO_COLOR": "1"}, Screen(), 0),
        ({**TRUE, "NO_COLOR": ""}, Screen(), 2**24),
        (TRUE, Screen(tty=False), 0),
        (TRUE, Screen("ascii"), 0),
    ],
)
def test_what_a_terminal_can_show(environment, screen, depth):
    assert terminal.colours(screen, environment) == depth


def test_half_blocks_are_the_pixels():
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3)).astype(np.uint8)
    shown = pixels(terminal.blocks(image, 2**24))
    assert np.array_equal(shown[:7], image)
    assert (shown[7] == -1).all()


def test_256_colours_are_the_nearest_of_xterms():
    image = np.array(
        [[[0, 0, 0], [255, 255, 255], [255, 0, 0], [120, 120, 120], [96, 134, 176]]], np.uint8
    )
    assert re.findall(r"38;5;(\d+)m", terminal.blocks(image, 256)) == [
        "16",
        "231",
        "196",
        "243",
        "67",
    ]


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (80, 24, (24, 76)),
        (200, 70, (32, 168)),
        (20, 24, (20, 20)),
        (70, 200, (100, 66)),
        (1, 1, (1, 1)),
    ],
)
def test_as_many_images_as_fit(width, height, size):
    """None of five images of 32x32 is enlarged; at 80x24 they are smaller, three in a row."""
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1)).astype(np.uint8)
    sheet = terminal.sheet(images, width, height)
    assert sheet.shape == (*size, 3)
    h = min(32, width, height)
    first = Image.fromarray(images[0, :, :, 0]).resize((h, h), Image.Resampling.LANCZOS)
    assert np.array_equal(sheet[:h, :h], np.asarray(first.convert("RGB")))
    if width >= 80:
        second = Image.fromarray(images[1, :, :, 0]).resize((h, h), Image.Resampling.LANCZOS)
        assert np.array_equal(sheet[:h, h + 2 : 2 * h + 2, 0], np.asarray(second))


def in_terminal(command: list, **environment: str) -> str:
    """Return what a command prints in a pseudo terminal of 60 columns and 20 lines."""
    if not shutil.which("script"):
        pytest.skip("there is no `script` to make a terminal")
    line = f"stty cols 60 rows 20; {shlex.join(map(str, [sys.executable, *command]))} 2>/dev/null"
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("NO_COLOR", "COLORTERM", "TERM", "COLUMNS", "LINES")
    }
    done = subprocess.run(
        ["script", "-qec", line, "/dev/null"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**clean, **environment},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_samples_are_shown_in_a_terminal(tiny_run, tmp_path):
    command = ["Inference.py", "--ckpt", tiny_run, "--num", 3, "--steps", 2, "--out", tmp_path]
    text = in_terminal(command, **TRUE)  # of 60 columns and 20 lines
    samples = np.load(tmp_path / "samples.npz")["arr_0"]
    shown = pixels(text)
    assert shown.shape == (8, 28, 3)
    for i in range(3):
        assert np.array_equal(shown[:, 10 * i : 10 * i + 8], samples[i])
    assert f"{tmp_path}: t0000.png" in text.splitlines()[-1]


@pytest.fixture
def screen(monkeypatch):
    """A function that makes standard output a terminal of 100 columns with 24-bit colours."""

    def make(**options) -> Screen:
        for name, value in {**TRUE, "COLUMNS": "100", "LINES": "30"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setattr(sys, "stdout", made := Screen(**options))
        return made

    return make


@pytest.mark.parametrize(("options", "flags"), [({"tty": False}, []), ({}, ["--no-preview"])])
def test_nothing_is_shown_without_a_terminal_or_with_no_preview(
    tiny_run, tmp_path, screen, options, flags
):
    screen = screen(**options)
    assert (
        Inference.main(
            ["--ckpt", str(tiny_run), "--num", "2", "--steps", "2", "--out", str(tmp_path), *flags]
        )
        == 0
    )
    assert screen.getvalue().count("\n") == 1
    assert "\033" not in screen.getvalue()


def test_the_noised_photo_is_shown(tmp_path, screen):
    screen = screen()
    Image.new("RGB", (60, 60), (200, 30, 60)).save(tmp_path / "photo.png")
    Inference.main(
        [
            "--input-image",
            str(tmp_path / "photo.png"),
            "--save-steps",
            "0,1000",
            "--out",
            str(tmp_path / "out"),
        ]
    )
    shown = pixels(screen.getvalue())
    assert shown.shape == (30, 62, 3)
    assert (shown[:, :30] == [200, 30, 60]).all()
    assert shown[:, 32:].std() > 20
