"""--logger: stand-ins for wandb and trackio that record their calls, and the real packages if
they are installed."""

import json
import sys

import pytest
from conftest import TINY
from training_runs import Process, fit, losses, weights_hash

import train

WANDB = """
import json, os, types, sys
from pathlib import Path

def note(what, **about):
    with open(os.environ["STAND_IN"], "a") as file:
        file.write(json.dumps({"what": what, "package": __name__, **about}) + "\\n")

class Run:
    offline, url = True, None
    def define_metric(self, name, step_metric=None, step_sync=None): note("metric", name=name)
    def log(self, values, step=None):
        if os.environ.get("FAILS") == "log":
            raise ConnectionError("the network\\nis lost")
        if step is None:
            step = values.pop("trainer/global_step")
        note("log", step=step, values=values)
    def finish(self, code=None): note("finish", code=code)

class Settings:
    def __init__(self, **settings): pass

def Image(path):
    assert Path(path).is_file()
    return Path(path).name

def init(**options):
    if os.environ.get("FAILS") == "init":
        raise RuntimeError("no account")
    note("init", id=options.get("id") or options["name"], options=str(options),
         resume=options["resume"], T=options["config"]["T"])
    run = Run()
    run.name = options["name"]
    return run

run = None
finish = lambda: note("finish", code=None)
for name, holds in (("sdk", ""), ("sdk.lib", "RunDisabled"), ("wandb_run", "Run")):
    module = sys.modules[f"{__name__}.{name}"] = types.ModuleType(name)
    if holds:
        setattr(module, holds, type(holds, (), {}))
"""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """A function that returns what the stand-ins for wandb and trackio were asked so far."""
    folder, notes = tmp_path / "packages", tmp_path / "notes.jsonl"
    for name in ("wandb", "trackio"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(WANDB)
        about = folder / f"{name}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("STAND_IN", str(notes))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)

    def asked(what, package=None):
        found = map(json.loads, notes.read_text().splitlines() if notes.exists() else [])
        return [
            note for note in found if note["what"] == what and package in (None, note["package"])
        ]

    yield asked
    for name in [name for name in sys.modules if name.partition(".")[0] in ("wandb", "trackio")]:
        del sys.modules[name]


def logged(notes, name):
    return [note["step"] for note in notes if name in note["values"]]


def test_trackers_get_metrics_and_previews_and_go_on_with_the_same_run(
    tiny_data, tmp_path, stand_ins, capsys
):
    run_dir = tmp_path / "run"
    words = ("--logger", "wandb,trackio")
    fit(tiny_data, run_dir, "--max-steps", 6, *words)
    assert f"{run_dir / 'samples'}, and {run_dir / 'metrics.csv'}" in capsys.readouterr().out
    fit(tiny_data, run_dir, "--max-steps", 12, *words)
    assert sorted(losses(run_dir)) == list(range(1, 13))
    assert not (run_dir / "tensorboard").exists()
    run_id = (run_dir / "tracker_id").read_text().strip()
    for package, name in (("wandb", run_id), ("trackio", f"run-{run_id}")):
        begun = stand_ins("init", package)
        assert [(note["id"], note["resume"], note["T"]) for note in begun] == [
            (name, "allow", 20)
        ] * 2
        assert len(stand_ins("finish", package)) == 2
        notes = stand_ins("log", package)
        assert logged(notes, "train_loss") == list(range(1, 13))
        assert logged(notes, "val_loss") == [6, 12]
        assert logged(notes, "real") == [0]
        assert logged(notes, "samples") == [6, 12]
        shown = [note["values"]["samples"] for note in notes if "samples" in note["values"]]
        assert "step_00000012.png" in shown[-1]
    (run_dir / "tracker_id").write_bytes(b"\xff../../elsewhere")
    fit(tiny_data, run_dir, "--max-steps", 13, *words)
    assert stand_ins("init", "wandb")[-1]["id"] != run_id


@pytest.mark.parametrize("fails", ["init", "log"])
def test_a_tracker_that_fails_is_left_out_and_training_goes_on(
    tiny_data, tmp_path, stand_ins, monkeypatch, capsys, fails
):
    monkeypatch.setenv("FAILS", fails)
    assert fit(tiny_data, tmp_path / "run", "--max-steps", 7, "--logger", "wandb,tensorboard") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "wandb" in line]
    reason = {"init": "no account", "log": "the network is lost"}[fails]
    assert warnings == [f"train.py: wandb failed ({reason}); training goes on without it"]
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    fit(tiny_data, tmp_path / "plain", "--max-steps", 7, "--logger", "csv")
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")
    assert weights_hash(tmp_path / "run") == weights_hash(tmp_path / "plain")


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_missing_package_is_named(refused, tiny_data, tmp_path, monkeypatch, package):
    monkeypatch.setattr(train.importlib.util, "find_spec", lambda name: None)
    words = ["--dataset", tiny_data, "--run-dir", tmp_path / "run", *TINY]
    line = refused(train.main, *words, "--logger", f"csv,{package}")
    assert f"argument --logger: {package} is not installed: pip install {package}" in line
    assert not (tmp_path / "run").exists()


def test_an_unknown_logger_gets_a_suggestion(refused):
    assert "did you mean tensorboard?" in refused(train.main, "--logger", "csv,tensorbord")


@pytest.mark.slow
def test_the_first_of_two_processes_logs(tiny_data, tmp_path, stand_ins):
    words = ["--dataset", tiny_data, "--run-dir", tmp_path / "run", *TINY, "--max-steps", 6]
    process = Process(tmp_path, *words, "--devices", 2, "--logger", "wandb", fresh=True)
    assert process.ends() == 0, process.err
    assert len(stand_ins("init")) == 1
    assert logged(stand_ins("log"), "train_loss") == list(range(1, 7))


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_the_real_package_without_a_network(tiny_data, tmp_path, monkeypatch, capsys, package):
    pytest.importorskip(package)
    for name, value in {"WANDB_MODE": "offline", "TRACKIO_DIR": tmp_path / "trackio"}.items():
        monkeypatch.setenv(name, str(value))
    words = ["--dataset", tiny_data, "--run-dir", tmp_path / "run", *TINY, "--logger", package]
    for steps in (6, 12):
        process = Process(tmp_path, *words, "--max-steps", steps, fresh=True)
        assert process.ends() == 0
        assert "failed" not in process.err
    run_id = (tmp_path / "run" / "tracker_id").read_text().strip()
    if package == "wandb":
        folders = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{run_id}"))
        assert len(folders) == 2
        assert len(list((tmp_path / "run" / "wandb").rglob("samples_*.png"))) == 2
    else:
        assert len(list((tmp_path / "trackio").rglob("*.png"))) == 3
