"""What a person touches: --help, misspelt names, the TAB key, pictures in the terminal, TensorBoard, animations."""

import argparse
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from training_runs import fit

import convert
import Dataset
import DiffusionModel
import evaluate
import Inference
import make_gif
import report
import train
from diffusion import objective, schedules
from runtime import arguments, flags, suggestions, terminal
from sampling import samplers

SCRIPTS = {
    "train.py": train,
    "Inference.py": Inference,
    "make_gif.py": make_gif,
    "evaluate.py": evaluate,
    "convert.py": convert,
    "report.py": report,
}
OPTIONS = [
    (script, action)
    for script, module in SCRIPTS.items()
    for action in module.build_parser()._actions
    if not isinstance(action, argparse._HelpAction)
]


# ---- --help ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "action"), OPTIONS, ids=lambda part: getattr(part, "dest", part)
)
def test_help_says_the_default_and_more(script, action):
    """The default stands in the last parentheses, as it would be typed; where it is none, what happens without the flag."""
    said = re.fullmatch(r"(.{4,}) \((.+)\)", arguments.Help("x")._get_help_string(action))
    if isinstance(action, argparse._StoreTrueAction) or not action.option_strings:
        return
    assert said, f"{script} {action.dest}: {action.help}"
    if isinstance(action, argparse.BooleanOptionalAction) and action.default is not None:
        assert said[2] == ("yes" if action.default else "no")
    elif action.default is not None:
        typed = re.split(r"[:;] ", said[2])[0].split(" ")[0]
        assert (action.type or str)(typed) == action.default


@pytest.mark.parametrize("script", SCRIPTS)
def test_examples_in_the_docstrings_parse(script):
    lines = re.findall(r"^ {4}python (\S+) (.*)$", SCRIPTS[script].__doc__, re.MULTILINE)
    assert len(lines) >= (1 if script == "report.py" else 3)
    for name, words in lines:
        assert name == script
        args = SCRIPTS[script].build_parser().parse_args(shlex.split(words, comments=True))
        assert not (Inference.contradiction(args) if script == "Inference.py" else "")


def test_the_flags_of_a_preset_that_help_shows_are_the_preset():
    parser = train.build_parser()
    _, *shown = re.split(r"--preset (?=\w+ is )", " ".join(parser.format_help().split()))
    found = {name: vars(parser.parse_args(words)) for name, _, *words in map(str.split, shown)}
    assert found == {
        name: vars(parser.parse_args([])) | preset
        for name, preset in train.PRESETS.items()
        if preset
    }


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    ("script", "most"),
    [
        ("train.py", 125),
        ("Inference.py", 85),
        ("make_gif.py", 20),
        ("evaluate.py", 80),
        ("convert.py", 45),
        ("report.py", 15),
    ],
)
def test_help_fits(monkeypatch, columns, script, most):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = SCRIPTS[script].build_parser().format_help().splitlines()
    assert len(lines) <= most
    assert all(len(line) <= columns for line in lines if not line.startswith("    python "))
    assert all(
        len(line.split("  #")[0].rstrip()) <= 84 for line in lines if line.startswith("    python ")
    )
    assert "usage" not in "".join(lines)


def test_the_command_line_knows_every_name_of_the_modules():
    """They are typed twice, for the modules import torch: what is added in one place is to be added in the other."""
    known = {action.dest: action.choices for script, action in OPTIONS if script == "train.py"}
    assert flags.SAMPLERS == samplers.SAMPLERS
    assert flags.GRIDS == samplers.GRIDS
    assert known["parameterization"] == DiffusionModel.PARAMETERIZATIONS
    assert known["variance"] == DiffusionModel.VARIANCES
    assert known["weighting"] == objective.WEIGHTINGS
    assert known["t_sampling"] == objective.T_SAMPLINGS
    said = {action.dest: action.help for script, action in OPTIONS if script == "train.py"}
    assert ", ".join(schedules.SCHEDULES) in said["schedule"]
    assert ", ".join(Dataset.NAMES) in said["dataset"]
    shell = (ROOT / "run.sh").read_text()
    assert f"    {'|'.join(Dataset.NAMES)}) " in shell
    assert json.dumps([*Dataset.NAMES])[:-1] in shell


# ---- misspelt names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        (
            "Inference.py",
            "--ckpt x --guidence 3",
            "unknown flag --guidence, did you mean --guidance?",
        ),
        (
            "Inference.py",
            "--ckpt x --sampler dmp++",
            "did you mean dpm++? expected one of ddpm, ddim, heun, dpm++, ",
        ),
        ("Inference.py", "-ckpt x", "unknown flag -ckpt, did you mean --ckpt?"),
        ("train.py", "--preset laptob", "did you mean laptop?"),
        ("train.py", "--batch_size 3", "did you mean --batch-size?"),
        ("train.py", "--batchsize=3", "did you mean --batch-size?"),
        ("train.py", "--qqq", "unknown flag --qqq: see python "),
        ("train.py", "--max-step 5 --batch-siz 3", "--max-step, did you mean --max-steps?"),
        ("train.py", "dataset cifar10", "'dataset' belongs to no flag, did you mean --dataset?"),
        ("train.py", "--schedule cosin", "did you mean cosine?"),
        ("train.py", "--dataset cifar-10", "did you mean cifar10?"),
        ("train.py", "--dataset fashion_mnist", "did you mean fashionmnist?"),
        ("train.py", "--dataset minst", "did you mean mnist?"),
        ("evaluate.py", "--ckp x", "unknown flag --ckp, did you mean --ckpt?"),
        (
            "evaluate.py",
            "--ckpt x --sampler ddpm,unpic",
            "did you mean unipc? expected some, separated by commas, of ddpm, ddim",
        ),
        ("make_gif.py", "x.npz --culumns 3", "did you mean --columns?"),
    ],
)
def test_the_nearest_known_name_is_suggested_once(refused, script, words, said):
    line = refused(SCRIPTS[script].main, *words.split())
    assert said in line
    assert line.count("did you mean") <= 1
    assert "maybe you meant" not in line


def test_a_value_may_look_like_anything_but_a_flag():
    parser = arguments.Parser("x")
    parser.add_argument("--name")
    parser.add_argument("rest", nargs="*")
    assert parser.parse_args(["--name", "-my folder", "--", "--name", "-x"]).rest == [
        "--name",
        "-x",
    ]
    assert parser.parse_args(["--name=-x"]).name == "-x"
    assert parser.parse_args(["--name", "-3"]).name == "-3"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Fashion-MNIST", "fashionmnist"),
        ("CIFAR 10", "cifar10"),
        ("shape", "shapes"),
        ("zebra", ""),
        ("--no-such-flag", ""),
    ],
)
def test_nearest(name, meant):
    assert (
        suggestions.nearest(name, ["mnist", "fashionmnist", "cifar10", "shapes", "--no-flip"])
        == meant
    )


# ---- the TAB key -----------------------------------------------------------------------------------------------------------


def completed(script: str, words: str) -> set[str]:
    """What argcomplete offers for the last word of `python SCRIPT WORDS`, torch being out of reach."""
    line = f"{script} {words}"
    code = (
        "import sys, runpy; sys.modules.update(torch=None, numpy=None); "
        f"sys.argv = ['{script}']; runpy.run_path('{script}', run_name='__main__')"
    )
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": "/dev/stdout",
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **asked},
    )
    assert done.returncode == 0, done.stderr
    return {word.strip() for word in done.stdout.split("\n")}


@pytest.mark.parametrize(
    ("script", "words", "offered"),
    [
        ("Inference.py", "--sam", {"--sampler"}),
        ("Inference.py", "--sampler d", {"ddpm", "ddim", "dpm++"}),
        ("train.py", "--preset la", {"laptop"}),
        ("evaluate.py", "--doc", {"--doctor"}),
        ("make_gif.py", "--co", {"--columns"}),
    ],
)
def test_flags_and_choices_are_completed_without_torch(script, words, offered):
    assert completed(script, words) == offered


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_finds_the_mark_of_completion(script):
    assert "PYTHON_ARGCOMPLETE_OK" in (ROOT / script).read_text()[:1024]


def test_the_tab_key_in_bash_as_the_readme_says():
    said = re.search(
        r'eval "\$\((.*activate-global-python-argcomplete.*)\)"', (ROOT / "README.md").read_text()
    )
    assert said
    program = Path(sys.executable).parent / "activate-global-python-argcomplete"
    shell = f"""
        eval "$({said[1]})"
        COMP_LINE="python train.py --accu" COMP_POINT=22 COMP_WORDS=(python train.py --accu) COMP_CWORD=2 COMP_TYPE=9
        _python_argcomplete_global python --accu train.py
        echo "${{COMPREPLY[@]}}" """
    done = subprocess.run(
        ["bash", "-c", shell],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"},
    )
    assert done.stdout.split() == ["--accumulate"], done.stderr


# ---- pictures in the terminal ----------------------------------------------------------------------------------------------


class Screen(io.StringIO):
    def __init__(self, encoding: str = "utf-8", tty: bool = True):
        super().__init__()
        self.tty, self.name_of_encoding = tty, encoding

    encoding = property(lambda self: self.name_of_encoding)

    def isatty(self) -> bool:
        return self.tty


TRUE = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}


def pixels(text: str) -> np.ndarray:
    """The half blocks of 24 bits as pixels again: (2 * lines, columns, 3); what has no background is -1."""
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
    """Of five of 32x32, none enlarged; on 24 lines they are smaller, and three go beside one another."""
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
    """What a command prints in a pseudo terminal of 60 columns and 20 lines."""
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
    """A function: a terminal of 100 columns and 30 lines, with 24-bit colours, as standard output, or something like it."""

    def make(**options) -> Screen:
        for name, value in {**TRUE, "COLUMNS": "100", "LINES": "30"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setattr(sys, "stdout", made := Screen(**options))
        return made

    return make


@pytest.mark.parametrize(("options", "flags"), [({"tty": False}, []), ({}, ["--no-preview"])])
def test_elsewhere_nothing_is_shown(tiny_run, tmp_path, screen, options, flags):
    screen = screen(**options)
    assert (
        Inference.main(
            ["--ckpt", str(tiny_run), "--num", "2", "--steps", "2", "--out", str(tmp_path), *flags]
        )
        == 0
    )
    assert screen.getvalue().count("\n") == 1
    assert "\033" not in screen.getvalue()


def test_the_way_of_a_photo_into_noise_is_shown(tmp_path, screen):
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


# ---- TensorBoard -----------------------------------------------------------------------------------------------------------


def events(run_dir: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(
        str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "images": 0}
    )
    found.Reload()
    return found


def test_tensorboard_shows_the_pictures_and_a_resumed_run_nothing_twice(
    tiny_data, tmp_path, capsys
):
    """Killed after the validation of 12, before a checkpoint was written; gone on with from 10."""
    fit(tiny_data, tmp_path, "--max-steps", 15, "--save-every", 5)
    said = capsys.readouterr().out.splitlines()
    assert (
        said[1]
        == f"to watch it: {tmp_path / 'samples'}, and tensorboard --logdir {tmp_path.parent}"
    )
    for file in (tmp_path / "checkpoints").glob("step_00000015.*"):
        file.unlink()
    fit(tiny_data, tmp_path, "--max-steps", 18, "--save-every", 5)
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 2
    found = events(tmp_path)
    assert found.Tags()["images"] == ["real", "samples"]
    assert "hp_metric" not in found.Tags()["scalars"]
    assert [e.step for e in found.Scalars("train_loss")] == list(range(1, 19))
    assert [e.step for e in found.Scalars("val_loss")] == [6, 12, 18]
    assert [e.step for e in found.Images("real")] == [0]
    assert [e.step for e in found.Images("samples")] == [6, 12, 18]
    for shown in [*found.Images("samples"), *found.Images("real")]:
        file = tmp_path / "samples" / (f"step_{shown.step:08d}.png" if shown.step else "real.png")
        assert np.array_equal(
            np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))),
            np.asarray(Image.open(file)),
        )
