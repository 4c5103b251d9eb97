"""Signals that arrive while a script is starting."""

import shutil
import signal

import pytest
from training_runs import (
    Process,
)

import Inference


@pytest.mark.parametrize(
    "script", ["train.py", pytest.param("Inference.py", marks=pytest.mark.slow)]
)
def test_a_signal_while_torch_is_imported(tiny_data, tiny_run, tmp_path, script):
    arguments = {
        "train.py": ["--dataset", tiny_data, "--run-dir"],
        "Inference.py": ["--ckpt", tiny_run, "--out"],
    }[script]
    process = Process(tmp_path, *arguments, tmp_path / "run", script=script, fresh=True)
    with open(f"/proc/{process.popen.pid}/maps") as maps:
        process.until(lambda: (maps.seek(0), "libtorch" in maps.read())[1]).kill(signal.SIGUSR1)
    assert process.ends(10) == 75
    assert f"{script}: stopped by SIGUSR1" in process.err
    assert "Traceback" not in process.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("script", "out"),
    [
        ("make_gif.py", "denoise.gif"),
        pytest.param("report.py", "report.html", marks=pytest.mark.slow),
    ],
)
def test_brief_scripts_ignore_sigusr1(tiny_run, tmp_path, script, out):
    run_dir = shutil.copytree(tiny_run, tmp_path / "run")
    assert (
        Inference.main(
            ["--ckpt", str(run_dir), "--out", str(run_dir / "images"), "--device", "cpu"]
        )
        == 0
    )
    what = {"make_gif.py": run_dir / "images" / "trajectory.npz", "report.py": run_dir}[script]
    for number, status in (signal.SIGUSR1, 0), (signal.SIGTERM, 143):
        process = Process(
            tmp_path / number.name,
            what,
            "--out",
            tmp_path / number.name / out,
            script=script,
            fresh=True,
        )
        with open(f"/proc/{process.popen.pid}/maps") as maps:
            process.until(lambda maps=maps: (maps.seek(0), "numpy" in maps.read())[1]).kill(number)
        assert process.ends(60) == status
        assert "Traceback" not in process.err
        assert [
            file.name
            for file in (tmp_path / number.name).iterdir()
            if not file.name.startswith("said")
        ] == [out] * (status == 0)
    assert f"{script}: stopped by SIGTERM" in process.err


def test_a_signal_while_data_are_prepared(tmp_path):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for i in range(1500):
        Image.new("RGB", (300, 300), (i % 256, 0, 0)).save(tmp_path / "photos" / f"{i}.png")
    process = Process(
        tmp_path,
        "--dataset",
        tmp_path / "photos",
        "--run-dir",
        tmp_path / "run",
        "--data-root",
        tmp_path / "data",
    )
    process.until(lambda: "decoding" in process.err).kill(signal.SIGUSR1)
    assert process.ends(10) == 75
    assert "train.py: stopped by SIGUSR1" in process.err
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "data").glob("*"))
