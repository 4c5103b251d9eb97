"""Command lines of all scripts: --help, misspelled names, TAB completion."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import convert
import Dataset
import evaluate
import Inference
import make_gif
import report
import train
from checkpoints import export
from diffusion import objective, schedules, settings
from evaluation import features
from runtime import arguments, flags
from runtime.arguments import PrintVersions
from sampling import samplers, time_grid
from training.presets import PRESETS

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
    if not isinstance(action, (argparse._HelpAction, PrintVersions))
]


# ---- --help -------------------------------------------------------------------------------------


def takes_a_value(action: argparse.Action) -> bool:
    return bool(action.option_strings) and not isinstance(action, argparse._StoreTrueAction)


@pytest.mark.parametrize(
    ("script", "action"),
    [(script, action) for script, action in OPTIONS if takes_a_value(action)],
    ids=lambda part: getattr(part, "dest", part),
)
def test_help_says_the_default_and_more(script, action):
    """The last parentheses have the default, as it would be typed.

    Without a default, they say what happens without the flag.
    """
    said = re.fullmatch(
        r"(.{4,}) \((?:required.*|default: (.+))\)", arguments.Help("x")._get_help_string(action)
    )
    assert said, f"{script} {action.dest}: {action.help}"
    if isinstance(action, argparse.BooleanOptionalAction) and action.default is not None:
        assert said[2] == ("yes" if action.default else "no")
    elif action.default is not None:
        typed = re.split(r"[:;,] ", said[2])[0].split(" ")[0]
        assert (action.type or str)(typed) == action.default


@pytest.mark.parametrize("script", SCRIPTS)
def test_examples_in_the_docstrings_parse(script):
    lines = re.findall(r"^ {4}python (\S+) (.*)$", SCRIPTS[script].__doc__, re.MULTILINE)
    assert len(lines) >= (1 if script == "report.py" else 3)
    for name, words in lines:
        assert name == script
        args = SCRIPTS[script].build_parser().parse_args(shlex.split(words, comments=True))
        assert not (Inference.find_conflict(args) if script == "Inference.py" else "")


def test_the_flags_of_a_preset_that_help_shows_are_the_preset():
    parser = train.build_parser()
    help_text = " ".join(parser.format_help().split())
    help_text = help_text.replace("; but --guidance 4.0 for cifar10", "")
    _, *shown = re.split(r"--preset (?=\w+ is )", help_text)
    words = {name: flags for name, _, *flags in map(str.split, shown)}
    assert words["quick"][:3] == ["--preset", "laptop", "with"]
    words["quick"] = words["laptop"] + words["quick"][3:]
    found = {name: vars(parser.parse_args(flags)) for name, flags in words.items()}
    assert found == {
        name: vars(parser.parse_args([])) | preset for name, preset in PRESETS.items() if preset
    }


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    ("script", "most"),
    [
        ("train.py", 167),
        ("Inference.py", 119),
        ("make_gif.py", 20),
        ("evaluate.py", 115),
        ("convert.py", 45),
        ("report.py", 16),
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


def test_choices_that_the_command_lines_repeat_are_those_of_the_modules():
    """Choices are declared twice, because the modules that have them import torch."""
    of_evaluation = {action.dest: action for script, action in OPTIONS if script == "evaluate.py"}
    for name in features.NAMES:
        assert name in of_evaluation["features"].help
    assert tuple(convert.ENDINGS) == export.FORMATS
    known = {action.dest: action.choices for script, action in OPTIONS if script == "train.py"}
    assert flags.SAMPLERS == samplers.SAMPLERS
    assert flags.GRIDS == time_grid.GRIDS
    assert known["parameterization"] == settings.PARAMETERIZATIONS
    assert known["variance"] == settings.VARIANCES
    assert known["optimizer"] == settings.OPTIMIZERS
    assert known["lr_schedule"] == settings.LR_SCHEDULES
    assert known["weighting"] == objective.WEIGHTINGS
    assert known["t_sampling"] == objective.T_SAMPLINGS
    said = {action.dest: action.help for script, action in OPTIONS if script == "train.py"}
    assert ", ".join(schedules.SCHEDULES) in said["schedule"]
    assert ", ".join(Dataset.NAMES) in said["dataset"]
    shell = (ROOT / "run.sh").read_text()
    assert f"    {'|'.join(Dataset.NAMES)}) " in shell
    assert json.dumps([*Dataset.NAMES])[:-1] in shell


# ---- misspelled names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        (
            "Inference.py",
            "--ckpt runs/x --guidence 3",
            "unknown flag --guidence, did you mean --guidance?",
        ),
        (
            "Inference.py",
            "--ckpt runs/x --sampler dmp++",
            "--sampler: invalid choice 'dmp++', did you mean dpm++? Choose from ddpm, ddim, heun, ",
        ),
        ("Inference.py", "-ckpt x", "unknown flag -ckpt, did you mean --ckpt?"),
        ("train.py", "--preset laptob", "did you mean laptop?"),
        ("train.py", "--batch_size 3", "did you mean --batch-size?"),
        ("train.py", "--batchsize=3", "did you mean --batch-size?"),
        ("train.py", "--qqq", "unknown flag --qqq: see python "),
        ("train.py", "--max-step 5 --batch-siz 3", "--max-step, did you mean --max-steps?"),
        ("train.py", "dataset cifar10", "unexpected argument 'dataset', did you mean --dataset?"),
        ("train.py", "cifar10", "unexpected argument 'cifar10', did you mean --dataset cifar10?"),
        ("evaluate.py", "runs/x", "did you mean --ckpt runs/x?"),
        ("train.py", "--schedule cosin", "did you mean cosine?"),
        ("train.py", "--dataset cifar-10", "did you mean cifar10?"),
        ("train.py", "--dataset fashion_mnist", "did you mean fashionmnist?"),
        ("train.py", "--dataset minst", "did you mean mnist?"),
        ("evaluate.py", "--ckp x", "unknown flag --ckp, did you mean --ckpt?"),
        (
            "evaluate.py",
            "--ckpt runs/x --sampler ddpm,unpic",
            "--sampler: invalid choice 'unpic', did you mean unipc? Choose from ddpm, ddim",
        ),
        ("make_gif.py", "x.npz --culumns 3", "did you mean --columns?"),
        (
            "convert.py",
            "--ckpt runs/x --to difusers --out x",
            "--to: invalid choice 'difusers', did you mean diffusers? Choose from diffusers, ",
        ),
    ],
)
def test_the_nearest_known_name_is_suggested_once(refused, script, words, said):
    line = refused(SCRIPTS[script].main, *words.split())
    assert said in line
    assert line.count("did you mean") <= 1
    assert "maybe you meant" not in line


# ---- the TAB key --------------------------------------------------------------------------------


def completed(script: str, words: str) -> set[str]:
    """Return what argcomplete offers for the last word of `python SCRIPT WORDS`, without torch."""
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
        COMP_LINE="python train.py --accu" COMP_POINT=22 COMP_TYPE=9
        COMP_WORDS=(python train.py --accu) COMP_CWORD=2
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
