"""Checkpoints that are damaged, malicious or trained with other settings are not resumed."""

import shutil

import pytest
import torch
from conftest import TINY
from hostile import Bomb
from training_runs import (
    RUN,
    STEPS,
    assert_same_run,
    checkpoints,
    contents,
    fit_run,
    losses,
)

import train
from checkpoints.checkpoint_file import checksum_path, read_checkpoint_file
from checkpoints.run_dir import list_checkpoints, newest_checkpoint


@pytest.mark.parametrize("part", ["truncated", "state_dict", "ema", "code"])
def test_a_bad_checkpoint_is_not_resumed(refused, tiny_run, tiny_data, tmp_path, part):
    file, marker = tmp_path / "x.ckpt", tmp_path / "marker"
    content = contents(tiny_run)
    if part == "truncated":
        file.write_bytes(newest_checkpoint(tiny_run).read_bytes()[:5000])
    elif part == "code":
        torch.save(content | {"course": {"x": Bomb(marker)}}, file)
    else:
        weights = content[part].get("weights", content[part])
        weights[next(iter(weights))].fill_(float("nan"))
        torch.save(content, file)
    line = refused(
        train.main, "--dataset", tiny_data, "--run-dir", tmp_path / "run", *TINY, "--resume", file
    )
    assert "x.ckpt" in line
    assert not (tmp_path / "run").exists()
    assert not marker.exists()


@pytest.fixture(scope="module")
def stopped(tiny_data, tmp_path_factory):
    """A run that was stopped ten steps before its end, so that resuming it takes little time."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    assert fit_run(tiny_data, run_dir, "--max-steps", STEPS - 10) == 0
    return run_dir


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("truncated", "is damaged: its sha256"),
        ("one byte", "is damaged: its sha256"),
        ("truncated, no sum", "or is damaged"),
        ("empty", "or is damaged"),
        ("malicious", "or is damaged"),
        ("foreign", "trained with --width"),
        ("other data", "trained with data"),
        ("not a number", "not finite"),
        ("huge", "width must be a whole number from 4 to 1024"),
        ("Adam", "weight 0 must be"),
        ("rate", "the optimizer's settings"),
        ("loops", "a counter is of type"),
    ],
)
def test_a_bad_newest_checkpoint_is_skipped(
    stopped, tiny_data, tmp_path, undisturbed, capsys, kind, said
):
    run_dir, marker = tmp_path / "run", tmp_path / "marker"
    shutil.copytree(stopped, run_dir)
    newest, content = newest_checkpoint(run_dir), read_checkpoint_file(newest_checkpoint(run_dir))
    data = bytearray(newest.read_bytes())
    if kind.startswith("truncated"):
        newest.write_bytes(data[: len(data) // 2])
    elif kind == "one byte":
        data[len(data) // 2] ^= 1
        newest.write_bytes(data)
    elif kind == "empty":
        newest.write_bytes(b"")
    else:
        later = newest.with_name(f"step_{STEPS - 5:08d}.ckpt")
        settings, course = content["hyper_parameters"], content["course"]
        change = {
            "malicious": {"course": course | {"x": Bomb(marker)}},
            "other data": {"course": course | {"data": "0"}},
            "huge": {"hyper_parameters": settings | {"width": 10**9}},
            "foreign": {"hyper_parameters": settings | {"width": 16}},
            "loops": {"loops": content["loops"] | {"fit_loop": {"state_dict": torch.zeros(3)}}},
        }.get(kind, {})
        if kind == "not a number":
            next(iter(content["state_dict"].values())).view(-1)[0] = float("nan")
        elif kind == "Adam":
            content["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(1)
        elif kind == "rate":
            content["optimizer_states"][0]["param_groups"][0]["betas"] = (0.0, 5.0)
        torch.save(content | change, later)
    if kind not in ("truncated", "one byte"):
        checksum_path(newest).unlink()
    assert fit_run(tiny_data, run_dir) == 0
    told = capsys.readouterr()
    assert told.err.startswith("skipped: ")
    assert said in told.err.splitlines()[0]
    set_aside = newest.with_name(newest.name + ".skipped").exists()
    assert f"resuming at step {STEPS - (25 if set_aside else 10)} of" in told.out
    assert not marker.exists()
    assert [p.suffix for p in (run_dir / "checkpoints").iterdir() if "skipped" in p.name] == [
        ".skipped"
    ]
    assert len(checkpoints(run_dir)) == 2
    assert_same_run(run_dir, undisturbed)


def test_without_a_valid_checkpoint_nothing_is_changed(stopped, tiny_data, tmp_path, refused):
    run_dir = tmp_path / "run"
    shutil.copytree(stopped, run_dir)
    for file in list_checkpoints(run_dir):
        file.write_bytes(b"")
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    line = refused(train.main, "--dataset", tiny_data, "--run-dir", run_dir, *RUN)
    assert "1 older checkpoint was refused, too" in line
    assert {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()} == before


def test_what_lightning_left_in_the_folder_is_not_loaded(
    stopped, tiny_data, tmp_path, monkeypatch, undisturbed
):
    """In a job, Lightning would load hpc_ckpt_*.ckpt from its root directory."""
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    for folder in (run_dir, run_dir / "checkpoints"):
        shutil.copy(newest_checkpoint(stopped), folder / "hpc_ckpt_3.ckpt")
    for name, value in {
        "SLURM_NTASKS": "1",
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "ddpm",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NTASKS_PER_NODE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert fit_run(tiny_data, run_dir, "--max-steps", 5) == 0
    expected, _ = undisturbed
    assert losses(run_dir) == {step: expected[step] for step in range(1, 6)}


def test_only_paths_are_read_never_addresses(refused, tiny_data, tmp_path):
    line = refused(
        train.main,
        "--dataset",
        tiny_data,
        "--run-dir",
        tmp_path / "run",
        *RUN,
        "--resume",
        "https://example.org/x.ckpt",
    )
    assert "no checkpoint at https:" in line
