"""Run the scripts' commands in the README and in docs/, with smaller numbers, except those that
download weights or start processes. Parse the flags that commands of run.sh pass on to train.py.
Also check that links lead to files and that quoted code is the code."""

import importlib
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from PIL import Image

import convert
import Inference
import train
from runtime.pretrained import pretrained_names

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
SMALLER = {  # values that replace those of the flags in a command
    "--save-steps": "0,1,10,20",
    "--start-step": "10",
    "--class": "1",
    "--image-size": "8",
    "--max-steps": "2",
    "--max-time": "1m",
    "--flow": "2",
    "--num": "8",
    "--eval-every": "6",
    "--references": "8",
    "--steps": "5",
    "--preset": "paper",
    "--init-from": "runs/mnist",
    "--guidance-interval": "2,15",
}
ALWAYS = {
    "train.py": [flag for flag in TINY if flag not in ("--preset", "paper")]
    + ["--max-steps", "2", "--eval-images", "4"],
    "Inference.py": ["--device", "cpu", "--num", "4"],
    "evaluate.py": ["--num", "8", "--seeds", "0", "--device", "cpu"],
}
NO_SCRIPT = (
    "benchmarks/",
    "-m ",
    "-c ",
)  # beginnings of commands that do not run a script of this folder


def commands() -> list[str]:
    """Indented lines and `code`, without comments."""
    lines = re.findall(
        r"^    ((?:python|bash|sbatch) .*)$", TEXT.replace("\\\n", ""), re.MULTILINE
    ) + re.findall(r"`((?:python|bash|sbatch) [^`\n]+)`", TEXT)
    found = [" ".join(shlex.split(line, comments=True)) for line in lines]
    return list(dict.fromkeys(found))


def script_of(command: str) -> tuple[str, list[str]]:
    _, script, *flags = command.split()
    return script, flags


PYTHON = [
    c
    for c in commands()
    if c.startswith("python ") and not c.removeprefix("python ").startswith(NO_SCRIPT)
]
OF_RUN_SH = [c for c in commands() if " run.sh" in c and not c.startswith("python")]


def skip_without_its_packages(command: str) -> None:
    for package in ("wandb", "trackio"):
        if package in command:
            pytest.importorskip(package)


def parsed(script: str, flags: list[str]) -> None:
    importlib.import_module(script.removesuffix(".py")).build_parser().parse_args(flags)


def test_there_are_commands():
    assert len(PYTHON) > 30
    assert len(OF_RUN_SH) >= 12


@pytest.mark.parametrize("command", [c for c in PYTHON if not c.endswith("--help")])
def test_each_command_parses(command, tmp_path, monkeypatch):
    skip_without_its_packages(command)
    # After --ckpt, a single word must be an existing path or the name of a model.
    (tmp_path / "pipeline").mkdir()
    monkeypatch.chdir(tmp_path)
    parsed(*script_of(command))


def words_for_run_sh(command: str) -> list[str]:
    return command.split("run.sh", 1)[1].replace("--locked", "").split()


@pytest.mark.parametrize(
    "command",
    [c for c in OF_RUN_SH if words_for_run_sh(c)[:1] not in (["test"], ["bench"], ["demo"])],
)
def test_flags_that_run_sh_passes_on_parse(command):
    words = words_for_run_sh(command)
    words = words[1:] if words[:1] == ["setup"] else words
    parsed("train.py", words[1:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, conditional_run, tiny_data):
    """The folder in which the commands are run: runs of several datasets, and images."""
    reader = tmp_path_factory.mktemp("reader")
    for name in ("mnist", "fashionmnist", "photos"):
        shutil.copytree(conditional_run, reader / "runs" / name)
    run, narrow = str(reader / "runs" / "cifar10"), "--max-steps 2 --width 6 --mults 1,1".split()
    # with a network that a UNet2DModel can express
    assert train.main(["--dataset", str(tiny_data), "--run-dir", run, *TINY, *narrow]) == 0
    for name, condition in (("super", "downscale:4"), ("inpainting", "mask")):
        words = ["--run-dir", str(reader / "runs" / name), *TINY, "--max-steps", "2"]
        words += ["--dataset", str(tiny_data), "--condition", condition]
        assert train.main(words) == 0
    for name in ("photos", "generated", "scans", "pairs/input", "pairs/target"):
        (reader / name).mkdir(parents=True)
    shutil.copytree(ROOT / "images", reader / "images")
    pixels = np.load(tiny_data)["train_images"]
    for i in range(20):
        for name in ("photos", "generated", "pairs/input", "pairs/target"):
            Image.fromarray(pixels[i]).save(reader / name / f"{i}.png")
        scan = pixels[i, :, :, 0].astype(np.uint16) * 10
        Image.fromarray(scan).save(reader / "scans" / f"{i}.png")
    for name in ("photos", "generated", "a", "b"):
        np.savez(reader / f"{name}.npz", pixels)
    for i, name in enumerate(("photo.jpg", "a.png", "b.png")):
        Image.fromarray(pixels[i]).resize((32, 32)).save(reader / name)
    assert Inference.main(["--ckpt", run, "--num", "4", "--out", str(reader / "samples")]) == 0
    pipeline = ["--to", "diffusers", "--out", str(reader / "pipeline")]
    assert convert.main(["--ckpt", run, *pipeline]) == 0
    Image.fromarray(np.kron([[0, 255]], np.ones((32, 16))).astype(np.uint8)).save(
        reader / "mask.png"
    )
    return reader


def of_each_script(commands: list[str]) -> list:
    """The commands, as parameters of a test; all but the first of each script are slow."""
    first = {script_of(command)[0]: command for command in reversed(commands)}.values()
    return [c if c in first else pytest.param(c, marks=pytest.mark.slow) for c in commands]


@pytest.mark.parametrize("command", of_each_script(PYTHON))
def test_each_command_succeeds(command, folder, tiny_data, quick_classifier, monkeypatch, capsys):
    skip_without_its_packages(command)
    script, flags = script_of(command)
    if "inception" in flags:
        pytest.skip("its weights are downloaded")
    if "--devices" in flags:
        pytest.skip("starts processes: see tests/runtime/test_processes.py")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        torch, "compile", lambda forward, **_: forward
    )  # takes a minute; test_compiling.py tests it
    main = importlib.import_module(script.removesuffix(".py")).main
    if flags == ["--help"]:
        with pytest.raises(SystemExit) as stop:
            main(flags)
        assert stop.value.code == 0
        return
    flags = [
        SMALLER.get(before, flag) if before.startswith("--") and not flag.startswith("--") else flag
        for before, flag in zip(["", *flags], flags)
    ]
    always = list(ALWAYS.get(script, []))
    if script == "train.py":
        always += [
            "--run-dir",
            f"trained/{abs(hash(command))}",
            "--data-root",
            str(tiny_data.parent),
        ]
        own = {"photos/", "scans/", "photos.npz", "pairs/"} & {*flags}
        always += [] if own else ["--dataset", str(tiny_data)]
    elif script == "evaluate.py":
        # a pretrained model's images are not those of tiny_data
        flags = [f"runs/{flag}" if flag in pretrained_names() else flag for flag in flags]
        always = (
            []
            if "--doctor" in flags
            else [*always, "--dataset", str(tiny_data), "--data-root", str(tiny_data.parent)]
        )
        always += ["--features", "classifier"] if "efficientnet-lite0" in " ".join(flags) else []
        # other commands have written larger ones there
        flags = ["generated.npz" if flag == "samples/samples.npz" else flag for flag in flags]
        if "--samples" in flags:
            always = always[always.index("--device") :]  # nothing is sampled
    elif "--ckpt" not in flags:
        always = []
    assert main(flags + always) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_quoted_code_is_the_code():
    blocks = re.findall(r"```python\n# (\w+\.py), (\w+)\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 5
    for file, function, lines in blocks:
        body = re.search(
            rf"def {function}\(.*?(?=\n    def |\Z)", (ROOT / file).read_text(), re.DOTALL
        )
        assert body, (file, function)
        written = [line.split("  #")[0].strip() for line in body[0].splitlines()]
        for line in lines.splitlines():
            assert line.split("  #")[0].strip() in written, (file, function, line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    for link in links:
        if not link.startswith("https://"):
            assert (page.parent / link).exists(), link


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_prose_has_at_most_100_columns(page):
    lines = page.read_text().splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith("|")] == []


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs/use-from-python.md").read_text(), re.S)


@pytest.mark.parametrize("number", range(len(python_blocks())))
def test_python_in_use_from_python_md_runs(number, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(python_blocks()[number], f"block {number}", "exec"), {"__name__": "docs"})
