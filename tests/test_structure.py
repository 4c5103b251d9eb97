"""The house: which room may import which, and habits that a machine can check."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

MAY_IMPORT = {
    "CompleteFile": set(),
    "Spelling": set(),
    "Shapes": set(),
    "Dataset": {"CompleteFile", "Shapes", "Spelling"},
    "Unet": set(),
    "Signals": set(),
    "Devices": set(),
    "Processes": set(),
    "RunFolder": {"CompleteFile"},
    "Arguments": {"Spelling"},
    "Terminal": set(),
    "Schedule": {"Spelling"},
    "ForwardProcess": set(),
    "Objective": set(),
    "Likelihood": set(),
    "Augment": set(),
    "DiffusionModel": {"Unet", "Schedule", "ForwardProcess", "Objective", "Likelihood", "Augment"},
    "Sampler": set(),
    "Editing": {"Sampler"},
    "Guidance": set(),
    "Classifier": {"CompleteFile", "Dataset", "Devices"},
    "Features": {"Classifier", "CompleteFile", "Dataset"},
    "Distances": set(),
    "Neighbours": set(),
    "Samples": {"CompleteFile", "Dataset", "Generation", "Guidance", "Sampler"},
    "Metrics": {"Dataset", "Distances", "Features", "Likelihood", "Neighbours", "Sampler"},
    "Results": {"CompleteFile"},
    "Doctor": {"Checkpoint", "Dataset", "RunFolder"},
    "Measuring": {"Callbacks", "Dataset", "DiffusionModel", "Distances", "Features", "Loggers", "Metrics", "Samples", "Signals"},
    "PostHocEma": set(),
    "Counterpart": {"Schedule", "Unet"},
    "Interchange": {"CompleteFile", "Counterpart", "DiffusionModel", "RunFolder", "Spelling"},
    "Checkpoint": {"DiffusionModel", "Interchange", "Objective", "PostHocEma", "RunFolder", "Schedule"},
    "Generation": {"Checkpoint", "Dataset", "DiffusionModel", "Editing", "Guidance", "Sampler", "Spelling"},
    "Loggers": {"CompleteFile"},
    "Callbacks": {"DiffusionModel", "Guidance", "Loggers", "PostHocEma", "RunFolder", "Sampler", "Signals", "CompleteFile"},
    "Run": {"Dataset", "DiffusionModel", "Checkpoint", "RunFolder", "Callbacks", "Devices", "Processes", "Loggers", "Measuring",
            "Signals", "CompleteFile"},
    "train": {"Arguments", "Dataset", "DiffusionModel", "Features", "Schedule", "Checkpoint", "Run", "Devices", "Processes", "Signals"},
    "Inference": {"Arguments", "Generation", "Devices", "Processes", "Signals", "CompleteFile", "Terminal"},
    "Evaluation": {"Checkpoint", "Dataset", "Devices", "Features", "Metrics", "Processes", "Results", "RunFolder", "Sampler",
                   "Samples"},
    "evaluate": {"Arguments", "Devices", "Doctor", "Evaluation", "Processes", "Signals"},
    "Trajectory": set(),
    "make_gif": {"Arguments", "CompleteFile", "Signals", "Trajectory"},
    "Charts": set(),
    "RunPictures": {"Dataset", "DiffusionModel", "Generation", "Results", "Trajectory"},
    "RunPage": {"Charts", "Checkpoint", "DiffusionModel", "Doctor", "Results", "RunFolder", "RunPictures"},
    "report": {"Arguments", "CompleteFile", "RunPage", "Signals"},
    "convert": {"Arguments", "Checkpoint", "Interchange", "Signals"},
}
FILES = sorted(ROOT.glob("*.py"))


def test_every_purpose_of_randomness_has_its_own_number():
    import Dataset
    import DiffusionModel
    import Likelihood
    import Metrics
    import Sampler
    import Shapes
    purposes = [DiffusionModel.TRAIN, DiffusionModel.VALIDATE, DiffusionModel.DROPOUT, Dataset.ORDER, Shapes.SHAPE, Dataset.PICK,
                Sampler.IMAGE, Likelihood.NOISE, Likelihood.PLACE, Metrics.CEILING]
    assert sorted(purposes) == list(range(1, 11))  # none is 0: a key that ends in zeros is the key without them


def test_every_module_has_a_room():
    assert {file.stem for file in FILES} == MAY_IMPORT.keys()
    assert {file.name for file in FILES} == set(re.findall(r"^\| `(\w+\.py)` \|", (ROOT / "README.md").read_text(), re.MULTILINE))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_imports_go_one_way(file):
    imported = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert imported & MAY_IMPORT.keys() <= MAY_IMPORT[file.stem]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_no_flag_is_true_for_the_word_false_and_no_pickle_is_run(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.keyword):
            assert not (node.arg == "type" and isinstance(node.value, ast.Name) and node.value.id == "bool")
            assert not (node.arg == "weights_only" and getattr(node.value, "value", None) is False and file.stem != "Run")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
            options = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            assert options.get("weights_only") is True or options.get("allow_pickle") is False, ast.unparse(node)


@pytest.mark.parametrize("script", ["train.py", "Inference.py", "make_gif.py", "evaluate.py", "convert.py", "report.py"])
def test_help_and_typing_errors_do_not_wait_for_torch(script):
    code = ("import sys, runpy; sys.modules['torch'] = None; sys.modules['pytorch_lightning'] = None; "
            f"sys.argv = ['{script}', sys.argv[1]]; runpy.run_path('{script}', run_name='__main__')")
    shown = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0
    assert f"python {script}" in shown.stdout
    wrong = subprocess.run([sys.executable, "-c", code, "--no-such-flag"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
