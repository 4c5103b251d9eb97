"""Types of values on a command line: what each accepts, and the error for all else."""

import argparse

import pytest

from runtime.arguments import (
    Parser,
    duration,
    image_size,
    interval,
    names,
    numbers,
    real,
    some_numbers,
    whole,
)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (whole(1), "12", 12),
        (real(0, 1), "1e-3", 0.001),
        (numbers, "1,2,2", (1, 2, 2)),
        (numbers, "", ()),
        (some_numbers(0), "3,0,3", (3, 0)),
        (interval, "100,800", (100, 800)),
        (names("ddpm", "ddim"), "ddim, ddpm,ddim", ["ddim", "ddpm"]),
        (image_size, "64", 64),
        (image_size, "48x64", (48, 64)),
        (image_size, "64x64", 64),
        (image_size, " 48 X 64 ", (48, 64)),
        (image_size, "48×64", (48, 64)),
        (duration, "90s", 90),
        (duration, "10m", 600),
        (duration, "1.5h", 5400),
        (duration, "01:30:00", 5400),
    ],
)
def test_values(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (whole(1), "0", "a whole number of at least 1, not '0'"),
        (whole(0), "-1", "a whole number of at least 0, not '-1'"),
        (whole(0), "1.0", "not '1.0'"),
        (real(0, 1), "1.5", "a number from 0 to 1, not '1.5'"),
        (real(0, 1), "nan", "a number from 0 to 1, not 'nan'"),
        (real(0, 1), "half", "a number from 0 to 1, not 'half'"),
        (numbers, "1,,2", "separated by commas, as in 1,2,2, not '1,,2'"),
        (some_numbers(1), "0,3", "whole numbers of at least 1, separated by commas"),
        (some_numbers(1), "", "whole numbers of at least 1, separated by commas"),
        (interval, "800,100", "the lower first"),
        (names("ddpm", "ddim"), "ddpm,dimm", "invalid choice 'dimm', did you mean ddim? Choose"),
        (image_size, "48x", "HEIGHTxWIDTH, as in 48x64, or one number for a square, not '48x'"),
        (image_size, "0x64", "for a square, not '0x64'"),
        (image_size, "0", "for a square, not '0'"),
        (image_size, "48x64x3", "for a square, not '48x64x3'"),
        (image_size, "48,64", "for a square, not '48,64'"),
        (image_size, "-8x8", "for a square, not '-8x8'"),
        (duration, "10", "a time like 90s"),
        (duration, "1:3:00", "a time like 90s"),
    ],
)
def test_errors(parse, text, message):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        parse(text)
    assert message in str(error.value)


def test_a_value_may_begin_with_a_dash():
    parser = Parser("x")
    parser.add_argument("--name")
    parser.add_argument("rest", nargs="*")
    arguments = parser.parse_args(["--name", "-my folder", "--", "--name", "-x"])
    assert arguments.name == "-my folder"
    assert arguments.rest == ["--name", "-x"]
    assert parser.parse_args(["--name=-x"]).name == "-x"
    assert parser.parse_args(["--name", "-3"]).name == "-3"


def test_a_path_that_begins_with_a_tilde_is_in_the_home_folder(monkeypatch):
    """The shell does not expand it in --out=~/images."""
    monkeypatch.setenv("HOME", "/home/me")
    parser = Parser("x")
    parser.add_argument("--out")
    assert parser.parse_args(["--out", "~/images"]).out == "/home/me/images"
    assert parser.parse_args(["--out=~/images"]).out == "/home/me/images"
    assert parser.parse_args(["--out=a~/images"]).out == "a~/images"
    assert parser.parse_args(["--out", "~"]).out == "~"


@pytest.mark.parametrize("text", ["0s", "0.0m", "0h", "00:00:00"])
def test_a_duration_of_zero_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a time of more than 0"):
        duration(text)
