"""What a run survives: real processes, real signals, real file systems. Each disturbed run is compared with the one that
nothing disturbed: every loss, and a hash of all weights, to the last bit."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
import zipfile

import pytest
import torch
from conftest import ROOT
from training_runs import (
    RUN,
    STEPS,
    Process,
    assert_same_run,
    checkpoints,
    fit_run,
    long_validation,
    losses,
    runs,
    steps,
    validation_losses,
    weights_hash,
)

import Inference
import train
from checkpoints.checkpoint import load_model
from checkpoints.checkpoint_file import DamagedFile, checksum_path, read_checkpoint_file
from checkpoints.run_dir import list_checkpoints, newest_checkpoint
from checkpoints.validation import check_plain_data
from diffusion.settings import check_settings
from DiffusionModel import DiffusionModel

# ---- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_at_random_steps_again_and_again(start, tmp_path, undisturbed, times):
    seed = random.randrange(10**6)
    print("seed", seed)
    run_dir, dice, reached = tmp_path / "run", random.Random(seed), []
    for _ in range(times):
        goal = steps(run_dir) + dice.randint(30, STEPS // 5)
        process = (
            start(run_dir).until(lambda goal=goal: steps(run_dir) >= goal).kill(signal.SIGKILL)
        )
        assert process.ends() == -signal.SIGKILL
        reached.append(steps(run_dir))
    assert len(set(reached)) == times
    last = start(run_dir)
    assert last.ends() == 0
    assert "going on at step" in last.out
    assert_same_run(run_dir, undisturbed)


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written_with_tmpdir_elsewhere(start, tmp_path, tiny_data):
    """A wide network makes the file take a while; it is killed as soon as the temporary is there."""
    wide = ["--width", "64", "--max-steps", "12", "--save-every", "1", "--val-every", "100"]
    assert fit_run(tiny_data, tmp_path / "whole", *wide) == 0
    run_dir, elsewhere, caught = tmp_path / "run", f"/dev/shm/{tmp_path.name}", 0
    os.makedirs(elsewhere)
    try:
        for step in (2, 5, 8):

            def being_written(step=step):
                return any(
                    p.name >= f".step_{step:08d}"
                    for p in (run_dir / "checkpoints").glob(".step_*.ckpt")
                )

            start(run_dir, *wide, TMPDIR=elsewhere).until(being_written).kill(signal.SIGKILL).ends()
            caught += bool(list((run_dir / "checkpoints").glob(".step_*.ckpt")))
            for file in (run_dir / "checkpoints").glob("step_*.ckpt"):
                assert read_checkpoint_file(file)
        assert caught
        assert start(run_dir, *wide, TMPDIR=elsewhere).ends() == 0
        assert not os.listdir(elsewhere)  # nothing is staged there
    finally:
        shutil.rmtree(elsewhere)
    assert_same_run(run_dir, (losses(tmp_path / "whole"), weights_hash(tmp_path / "whole")))


def test_inference_killed_in_mid_write_gives_the_same_bytes_when_it_is_run_again(
    tiny_run, tmp_path
):
    def infer(folder, patch=""):
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import Inference; {patch}\nsys.exit(Inference.main(sys.argv[1:]))"
        arguments = [
            "--ckpt",
            tiny_run,
            "--out",
            tmp_path / folder,
            "--num",
            "20",
            "--device",
            "cpu",
        ]
        return Process(tmp_path, "-c", code, *arguments, script="").ends()

    torn = """
import os, numpy
def half(path, **arrays):
    with open(path, "wb") as file:
        file.write(b"PK" * 1000)
    os.kill(os.getpid(), 9)
numpy.savez = half"""
    assert infer("whole") == 0
    assert infer("killed", torn) == -signal.SIGKILL
    assert [p.suffix for p in (tmp_path / "killed").iterdir()] == [".npz"]
    assert next((tmp_path / "killed").iterdir()).name.startswith(".samples.tmp.")
    assert infer("killed") == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "killed").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()
    }


# ---- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 75)])
def test_a_signal_leaves_a_complete_checkpoint_and_a_clear_last_line(
    start, tmp_path, undisturbed, name, status
):
    run_dir = tmp_path / "run"
    process = start(run_dir).until(lambda: steps(run_dir) > 40).kill(signal.Signals[name])
    assert process.ends(10) == status
    assert process.out.splitlines()[-1].startswith(f"stopped by {name} at step ")
    assert "Traceback" not in process.err
    at = int(process.out.splitlines()[-1].split()[5])
    assert newest_checkpoint(run_dir).name == f"step_{at:08d}.ckpt"
    assert steps(run_dir) == at
    assert load_model(run_dir)
    if name == "SIGTERM":
        assert start(run_dir).ends() == 0
        assert_same_run(run_dir, undisturbed)


def test_in_a_job_every_signal_is_75(start, tmp_path):
    run_dir = tmp_path / "run"
    process = (
        start(run_dir, SLURM_JOB_ID="1").until(lambda: steps(run_dir) > 5).kill(signal.SIGTERM)
    )
    assert process.ends(10) == 75


@pytest.mark.slow
def test_more_signals_do_not_spoil_the_save(start, tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    process = start(run_dir).until(lambda: steps(run_dir) > 40)
    for number in [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT] * 10:
        with contextlib.suppress(ProcessLookupError):
            process.kill(number)
        time.sleep(0.002)
    status = process.ends(10)
    told = process.out.splitlines()[-1].split(" at step ")[
        0
    ]  # Python may be told of several at once, and then not in their order
    assert (told, status) in [
        ("stopped by SIGUSR1", 75),
        ("stopped by SIGTERM", 143),
        ("stopped by SIGINT", 130),
    ]
    assert "Traceback" not in process.err
    assert load_model(run_dir)
    assert start(run_dir).ends() == 0
    assert_same_run(run_dir, undisturbed)


def test_a_signal_during_validation(tiny_data, start, tmp_path, undisturbed):
    """It is cut short, and one more step is taken."""
    run_dir, long = tmp_path / "run", long_validation(tiny_data, tmp_path)
    process = start(run_dir, *long).until(lambda: checkpoints(run_dir)).kill(signal.SIGTERM)
    assert process.ends(10) == 143
    assert "step 30: validation loss cut short" in process.err
    assert "stopped by SIGTERM at step 31" in process.out
    assert (
        "30,," not in (run_dir / "metrics.csv").read_text()
    )  # half a validation is not written down
    assert not list((run_dir / "samples").glob("step_*"))
    assert start(run_dir, *long, "--val-every", "2000").ends() == 0
    assert_same_run(run_dir, undisturbed)


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
def test_what_takes_seconds_is_finished_before_what_sigusr1_warns_of(
    tiny_run, tmp_path, script, out
):
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


# ---- several processes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_of_two(start, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("two") / "run"
    process = start(run_dir, "--devices", 2)
    assert process.ends() == 0, process.err
    assert process.out.count("trained, at step") == 1  # one of the two speaks
    return losses(run_dir), weights_hash(run_dir)


def nearly_equal(one, other, until=STEPS, tolerance=1e-6):
    return (
        max(abs(float(one[step]) - float(other[step])) for step in range(1, until + 1)) <= tolerance
    )


@pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_two_processes_train_what_one_does(start, tiny_data, tmp_path, parts):
    """Without dropout, whose masks differ from process to process. Adam makes noise of size 1e-7 in a gradient of size 0
    (a bias before a normalization) into steps of size lr, so not the weights are compared, but what they do: the losses."""
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["--dropout", 0, "--max-steps", 120]
    assert fit_run(tiny_data, one, *options) == 0
    assert start(two, *options, "--devices", 2, "--accumulate", parts).ends() == 0
    assert nearly_equal(losses(one), losses(two), 120)
    assert validation_losses(one) == pytest.approx(validation_losses(two), abs=2e-6)
    assert len(validation_losses(one)) == 1


@pytest.mark.slow
def test_fewer_validation_batches_than_processes(start, tiny_data, tmp_path):
    options = ["--max-steps", 12, "--val-every", 6, "--val-images", 8, "--dropout", 0]
    process = start(tmp_path / "two", *options, "--devices", 2)
    assert process.ends() == 0, process.err
    assert fit_run(tiny_data, tmp_path / "one", *options) == 0
    one, two = (validation_losses(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 2
    assert one == pytest.approx(two, abs=2e-6)


@pytest.mark.slow
def test_torchrun_starts_them_too(tmp_path, tiny_data):
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        ROOT / "train.py",
    ]
    process = Process(
        tmp_path,
        *launcher,
        "--dataset",
        tiny_data,
        "--run-dir",
        tmp_path / "run",
        *RUN,
        "--max-steps",
        20,
        script="",
    )
    assert process.ends() == 0, process.err
    assert "2 x cpu" in process.out
    assert len(losses(tmp_path / "run")) == 20


@pytest.mark.slow
def test_a_signal_to_the_other_process_during_validation(tiny_data, start, tmp_path):
    long = long_validation(tiny_data, tmp_path)
    process = start(tmp_path / "run", *long, "--devices", 2).until(
        lambda: checkpoints(tmp_path / "run")
    )
    os.kill(process.others()[0], signal.SIGTERM)
    assert process.ends(10) == 143
    assert "step 30: validation loss cut short" in process.err
    assert "stopped by SIGTERM at step 31" in process.out


def test_a_signal_in_the_last_validation_is_not_lost(tiny_data, start, tmp_path):
    """The time that is left may be too short for what comes next: in a job the status puts it back into the queue."""
    long = long_validation(tiny_data, tmp_path)
    process = (
        start(tmp_path / "run", *long, "--max-steps", 30)
        .until(lambda: checkpoints(tmp_path / "run"))
        .kill(signal.SIGUSR1)
    )
    assert process.ends(10) == 75
    assert "trained, at step 30" in process.out.splitlines()[-1]
    assert "SIGUSR1 came in the last validation" in process.out.splitlines()[-1]
    again = start(tmp_path / "run", *long, "--max-steps", 30)
    assert again.ends() == 0
    assert "is already trained" in again.out


@pytest.mark.slow
def test_two_processes_resumed_as_one(start, tiny_data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert fit_run(tiny_data, one, "--dropout", 0, "--max-steps", 120) == 0
    assert start(two, "--dropout", 0, "--max-steps", 60, "--devices", 2).ends() == 0
    assert fit_run(tiny_data, two, "--dropout", 0, "--max-steps", 120) == 0
    assert nearly_equal(losses(one), losses(two), 120)


@pytest.mark.parametrize(
    "victim",
    [
        pytest.param("first", marks=pytest.mark.slow),
        "other",
        pytest.param("all", marks=pytest.mark.slow),
    ],
)
def test_sigterm_to_one_of_two_or_to_both(start, tmp_path, whole_of_two, victim):
    run_dir = tmp_path / "run"
    process = start(run_dir, "--devices", 2).until(lambda: steps(run_dir) > 30)
    others = process.others()
    assert len(others) == 1
    if victim == "other":
        os.kill(others[0], signal.SIGTERM)
    else:
        process.kill(signal.SIGTERM, whole_group=victim == "all")
    assert process.ends(10) == 143
    assert "stopped by SIGTERM at step" in process.out.splitlines()[-1]
    assert "Traceback" not in process.err
    if victim == "other":
        assert start(run_dir, "--devices", 2).ends() == 0
        assert_same_run(run_dir, whole_of_two)


@pytest.mark.parametrize("victim", [pytest.param("first", marks=pytest.mark.slow), "other"])
def test_one_of_two_is_killed(start, tmp_path, whole_of_two, victim):
    run_dir = tmp_path / "run"
    process = start(run_dir, "--devices", 2).until(
        lambda: checkpoints(run_dir) and steps(run_dir) > 30
    )
    others = process.others()
    os.kill(others[0] if victim == "other" else process.popen.pid, signal.SIGKILL)
    assert process.popen.wait(20) in (
        (1, -signal.SIGKILL) if victim == "other" else (-signal.SIGKILL,)
    )  # or Lightning was faster
    deadline = time.monotonic() + 20
    while runs(others[0]):
        assert time.monotonic() < deadline, "the other process still waits"
        time.sleep(0.1)
    process.ends()
    assert (
        "process of this run is gone" in process.err or "the first process is gone" in process.err
    )
    assert "Traceback" not in process.err
    assert start(run_dir, "--devices", 2).ends() == 0
    assert_same_run(run_dir, whole_of_two)


def test_two_processes_sample_the_same_images(tiny_run, tmp_path):
    for devices in (1, 2):
        process = Process(
            tmp_path,
            "--ckpt",
            tiny_run,
            "--out",
            tmp_path / str(devices),
            "--num",
            "21",
            "--batch-size",
            "4",
            "--devices",
            devices,
            "--device",
            "cpu",
            script="Inference.py",
        )
        assert process.ends() == 0, process.err
    assert {p.name: p.read_bytes() for p in (tmp_path / "1").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "2").iterdir()
    }


def test_a_batch_that_cannot_be_shared_is_refused_once(start, tmp_path):
    process = start(tmp_path / "run", "--batch-size", 9, "--devices", 2)
    assert process.ends() == 2
    assert process.err.count("batch size 9 cannot be shared by 2 processes") == 1
    assert "Traceback" not in process.err


def test_a_second_process_in_the_same_folder_is_refused(start, tmp_path, tiny_data, refused):
    run_dir = tmp_path / "run"
    process = start(run_dir).until(lambda: steps(run_dir) > 5)
    assert "another process is training in" in refused(
        train.main, "--dataset", tiny_data, "--run-dir", run_dir, *RUN
    )
    process.kill(signal.SIGTERM).ends()


# ---- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tiny_data, tmp_path_factory):
    """A run that was stopped ten steps before its end: what goes on from it is soon there."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    assert fit_run(tiny_data, run_dir, "--max-steps", STEPS - 10) == 0
    return run_dir


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("truncated", "is damaged: its sha256"),
        ("one byte", "is damaged: its sha256"),
        ("truncated, no sum", "or is damaged"),
        ("empty", "or is damaged"),
        ("malicious", "or is damaged"),
        ("foreign", "trained with width"),
        ("other data", "trained with data"),
        ("not a number", "not finite"),
        ("huge", "width must be int from 4 to 1024"),
        ("Adam", "weight 0 must be"),
        ("rate", "Adam's settings"),
        ("loops", "stands where a number should"),
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
    assert f"going on at step {STEPS - (25 if set_aside else 10)} of" in told.out
    assert not marker.exists()
    assert [p.suffix for p in (run_dir / "checkpoints").iterdir() if "skipped" in p.name] == [
        ".skipped"
    ]
    assert len(checkpoints(run_dir)) == 2
    assert_same_run(run_dir, undisturbed)


def test_where_no_checkpoint_is_sound_nothing_is_touched(stopped, tiny_data, tmp_path, refused):
    run_dir = tmp_path / "run"
    shutil.copytree(stopped, run_dir)
    for file in list_checkpoints(run_dir):
        file.write_bytes(b"")
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    line = refused(train.main, "--dataset", tiny_data, "--run-dir", run_dir, *RUN)
    assert "nor is any of the 1 older ones usable" in line
    assert {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()} == before


def test_hostile_numbers_are_refused_in_milliseconds(stopped, tmp_path):
    content = read_checkpoint_file(newest_checkpoint(stopped))
    for change in (
        {"width": 10**9},
        {"size": 10**9},
        {"T": 10**12},
        {"mults": (10**9,)},
        {"blocks": 10**6},
        {"classes": 10**12},
    ):
        torch.save(
            content | {"hyper_parameters": content["hyper_parameters"] | change},
            tmp_path / "x.ckpt",
        )
        began = time.process_time()
        with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
            load_model(tmp_path / "x.ckpt")
        assert time.process_time() - began < 0.5


def test_few_bytes_that_claim_to_be_many_are_refused_at_once(stopped, tmp_path):
    """A compressed archive, which could unpack to anything, and a few lists that, walked through, are 10**60."""
    with (
        zipfile.ZipFile(newest_checkpoint(stopped)) as source,
        zipfile.ZipFile(tmp_path / "x.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in source.namelist():
            bomb.writestr(name, source.read(name))
    with pytest.raises(DamagedFile):
        read_checkpoint_file(tmp_path / "x.ckpt")
    many = [0] * 10
    for _ in range(60):
        many = [many] * 10
    began = time.process_time()
    with pytest.raises(ValueError, match="too many"):
        check_plain_data(many)
    with pytest.raises(ValueError, match="width must be"):
        check_settings({"width": many})
    assert time.process_time() - began < 0.5


def test_what_lightning_left_in_the_folder_is_not_loaded(
    stopped, tiny_data, tmp_path, monkeypatch, undisturbed
):
    """Lightning takes hpc_ckpt_*.ckpt from its root directory in place of everything else when it believes to be in a job."""
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
    assert fit_run(tiny_data, run_dir) == 0
    assert_same_run(run_dir, undisturbed)


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


@pytest.fixture
def small_disk(tmp_path):
    """A function: a file system of so many KiB, or the test is skipped where none can be mounted."""
    mounted = []

    def mount(options):
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_keeps_the_old_checkpoint_and_says_so(
    start, tiny_data, tmp_path, undisturbed, small_disk
):
    disk = small_disk("size=6m")
    run_dir = disk / "run"
    process = Process(tmp_path, "--dataset", tiny_data, "--run-dir", run_dir, *RUN).until(
        lambda: checkpoints(run_dir)
    )
    with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 1024)
    assert process.ends(30) == 1
    assert "Traceback" not in process.err
    assert process.err.splitlines()[-1].startswith("train.py: cannot write to ")
    assert "No space left on device" in process.err.splitlines()[-1]
    assert f"the last checkpoint is {newest_checkpoint(run_dir)}" in process.err
    assert load_model(run_dir)
    (disk / "filler").unlink()
    assert Process(tmp_path, "--dataset", tiny_data, "--run-dir", run_dir, *RUN).ends() == 0
    assert_same_run(run_dir, undisturbed)


def test_a_folder_that_cannot_be_written_to_is_told_before_the_first_step(
    refused, tiny_data, small_disk
):
    disk = small_disk("ro,size=1m")
    assert "cannot use" in refused(
        train.main, "--dataset", tiny_data, "--run-dir", disk / "run", *RUN
    )


# ---- divergence -------------------------------------------------------------------------------------------------------


@pytest.fixture
def bad_steps(monkeypatch):
    """A function: from now on the loss is not a number where `bad(attempt, step)`."""

    def spoil(bad):
        original = DiffusionModel.get_loss

        def get_loss(self, batch, step):
            bad_step = bad(batch[2].attempt, step)
            return original(self, batch, step) * (float("nan") if bad_step else 1)

        monkeypatch.setattr(DiffusionModel, "get_loss", get_loss)

    return spoil


@pytest.mark.parametrize("fused", [("cpu",), ()])
def test_a_step_that_is_not_finite_is_skipped(tiny_data, tmp_path, bad_steps, monkeypatch, fused):
    monkeypatch.setattr("training.gradient_guard.FUSED", fused)
    bad_steps(lambda attempt, i: i in (5, 7))
    assert fit_run(tiny_data, tmp_path / "six", "--max-steps", 6, "--save-every", 5) == 0
    before, after = (
        read_checkpoint_file(file) for file in reversed(list_checkpoints(tmp_path / "six"))
    )
    assert (before["global_step"], after["global_step"]) == (5, 6)
    assert all(
        torch.equal(before["state_dict"][name], after["state_dict"][name])
        for name in before["state_dict"]
    )
    states = [c["optimizer_states"][0]["state"] for c in (before, after)]
    assert all(
        torch.equal(states[0][i][name], states[1][i][name])
        for i in states[0]
        for name in states[0][i]
    )
    assert losses(tmp_path / "six")[6] == "nan"
    assert fit_run(tiny_data, tmp_path / "ten", "--max-steps", 10) == 0
    assert all(
        value.isfinite().all()
        for value in read_checkpoint_file(newest_checkpoint(tmp_path / "ten"))[
            "state_dict"
        ].values()
    )


def test_a_gradient_that_is_not_finite_is_skipped_though_the_loss_is(
    tiny_data, tmp_path, monkeypatch
):
    original = DiffusionModel.on_after_backward

    def overflow(self):
        original(self)
        if self.trainer.global_step == 5:
            next(self.parameters()).grad.view(-1)[0] = float("inf")

    monkeypatch.setattr(DiffusionModel, "on_after_backward", overflow)
    assert fit_run(tiny_data, tmp_path, "--max-steps", 6, "--save-every", 5, "--clip", 0) == 0
    before, after = (read_checkpoint_file(file) for file in reversed(list_checkpoints(tmp_path)))
    assert all(
        torch.equal(before["state_dict"][name], after["state_dict"][name])
        for name in before["state_dict"]
    )


@pytest.mark.parametrize("interrupted", [(33,), pytest.param((28, 36, 45), marks=pytest.mark.slow)])
def test_five_bad_steps_go_back_and_on_with_other_noise(
    tiny_data, tmp_path, bad_steps, capsys, interrupted
):
    """Bad with the first noise only. Interrupted before, in or after the trouble, it is the same run."""
    bad_steps(lambda attempt, i: 31 <= i < 40 and attempt == 0)
    assert fit_run(tiny_data, tmp_path / "run", "--max-steps", 60) == 0
    assert "the loss is not finite at step 40" in (told := capsys.readouterr().err)
    assert "step_00000025.ckpt with other noise, 1 of 3 times" in told
    assert losses(tmp_path / "run").keys() == set(range(1, 61))
    assert "nan" not in losses(tmp_path / "run").values()
    for at in interrupted:
        assert fit_run(tiny_data, tmp_path / str(at), "--max-steps", at) == 0
    capsys.readouterr()
    for at in interrupted:
        assert fit_run(tiny_data, tmp_path / str(at), "--max-steps", 60) == 0
    for at in interrupted:
        assert weights_hash(tmp_path / str(at)) == weights_hash(tmp_path / "run")
        assert losses(tmp_path / str(at)) == losses(tmp_path / "run")


def test_a_run_that_diverges_before_its_first_checkpoint_starts_anew(
    tiny_data, tmp_path, bad_steps, capsys
):
    bad_steps(lambda attempt, i: i >= 3 and attempt < 2)
    assert fit_run(tiny_data, tmp_path, "--max-steps", 30) == 0
    assert "back to the start with other noise, 2 of 3 times" in capsys.readouterr().err
    assert read_checkpoint_file(newest_checkpoint(tmp_path))["noise"] == {"stream": 2, "skipped": 0}
    assert losses(tmp_path).keys() == set(range(1, 31))


def test_what_was_saved_before_going_back_to_the_start_is_set_aside(tiny_data, tmp_path, bad_steps):
    bad_steps(lambda attempt, i: i >= 12 and attempt == 0)
    assert fit_run(tiny_data, tmp_path, "--max-steps", 8) == 0  # stopped between two saves
    assert fit_run(tiny_data, tmp_path, "--max-steps", 22) == 0
    assert checkpoints(tmp_path) == ["step_00000022.ckpt"]
    assert [p.name for p in (tmp_path / "checkpoints").glob("*.skipped")] == [
        "step_00000008.ckpt.skipped"
    ]
    assert losses(tmp_path).keys() == set(range(1, 23))


def test_where_the_saving_steps_have_changed_it_goes_back_to_the_newest(
    tiny_data, tmp_path, bad_steps, capsys
):
    bad_steps(lambda attempt, i: i >= 42 and attempt == 0)
    assert fit_run(tiny_data, tmp_path, "--max-steps", 40, "--save-every", 20) == 0
    assert fit_run(tiny_data, tmp_path, "--max-steps", 55, "--save-every", 30) == 0
    assert "step_00000040.ckpt with other noise, 1 of 3 times" in capsys.readouterr().err
    assert losses(tmp_path).keys() == set(range(1, 56))


def test_it_gives_up_after_three_times_and_says_so(tiny_data, tmp_path, bad_steps, capsys):
    bad_steps(lambda attempt, i: i >= 31)
    assert fit_run(tiny_data, tmp_path, "--max-steps", 100) == 1
    lines = capsys.readouterr().err.splitlines()
    assert sum("with other noise" in line for line in lines) == 3
    assert "for the 4th time" in lines[-1]
    assert "step_00000025.ckpt; try a smaller --lr" in lines[-1]
    assert load_model(tmp_path)


def test_weights_that_are_not_finite_are_not_saved(tiny_data, tmp_path, monkeypatch, capsys):
    original = DiffusionModel.on_train_batch_start

    def break_it(self, batch, batch_idx):
        original(self, batch, batch_idx)
        if self.trainer.global_step == 49:
            next(self.parameters()).data.fill_(float("inf"))

    monkeypatch.setattr(DiffusionModel, "on_train_batch_start", break_it)
    assert fit_run(tiny_data, tmp_path, "--max-steps", 60) == 1
    assert "step_00000025.ckpt; try a smaller --lr" in capsys.readouterr().err
    assert load_model(tmp_path)
