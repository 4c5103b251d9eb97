"""run.sh: one command from nothing to a GIF, with the interpreter that runs the tests."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

QUICK = (
    "--image-size 8 --width 8 --mults 1,2 --T 40 --max-steps 4 --val-every 4 --val-images 8"
    " --batch-size 36"
).split()


def run(cwd, *argv, script=ROOT / "run.sh", **environment):
    return subprocess.run(
        ["bash", str(script), *map(str, argv)],
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_from_nothing_to_a_gif_and_again(tmp_path, tiny_data, times):
    for again in range(times):
        done = run(tmp_path, tiny_data, "--run-dir", tmp_path / "run", *QUICK)
        assert done.returncode == 0, done.stderr
        assert ("already trained" in done.stdout) == bool(again)
    assert {p.name for p in (tmp_path / "run" / "images").iterdir()} == {
        "trajectory.npz",
        "samples.npz",
        *(f"{kind}t{t}.png" for t in ("0000", "0002", "0020", "0040") for kind in ("", "x0_")),
    }
    assert (tmp_path / "run" / "denoise.gif").stat().st_size > 1000
    assert "data:image/png" in (tmp_path / "run" / "report.html").read_text()
    assert f"{tmp_path / 'run' / 'report.html'}: " in done.stdout
    assert str(tmp_path / "run") in done.stdout.split("== done")[1]


def test_in_a_job_each_step_is_a_job_step(tmp_path, tiny_data):
    """With a stand-in for srun, and with run.sh copied to another folder, as SLURM does it."""
    (tmp_path / "srun").write_text(
        '#!/bin/sh\necho "srun $*"\nwhile [ "${1#--}" != "$1" ]; do shift; done\ntest -f "$2"\n'
    )
    (tmp_path / "srun").chmod(0o755)
    (tmp_path / "slurm_script").write_text((ROOT / "run.sh").read_text())
    done = run(
        tmp_path,
        tiny_data,
        "--run-dir",
        tmp_path / "run",
        *QUICK,
        script=tmp_path / "slurm_script",
        SLURM_JOB_ID="1",
        SLURM_JOB_NAME="bash",
        SLURM_SUBMIT_DIR=str(ROOT),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
    )
    assert done.returncode == 0, done.stderr
    steps = [
        line.split(sys.executable) for line in done.stdout.splitlines() if line.startswith("srun ")
    ]
    assert [options for options, _ in steps] == [
        "srun --kill-on-bad-exit=1 ",
        "srun --kill-on-bad-exit=1 ",
        "srun --kill-on-bad-exit=1 --nodes=1 --ntasks=1 ",
        "srun --kill-on-bad-exit=1 --nodes=1 --ntasks=1 ",
    ]
    assert [command.split()[0] for _, command in steps] == [
        "train.py",
        "Inference.py",
        "make_gif.py",
        "report.py",
    ]


def test_it_stops_where_training_fails(tmp_path):
    done = run(tmp_path, "shapes", PYTHON=shutil.which("false"))
    assert done.returncode == 1
    assert "training on shapes" in done.stdout
    assert "sampling" not in done.stdout


def test_an_unknown_dataset_is_refused(tmp_path):
    done = run(tmp_path, "nist")
    assert done.returncode == 2
    assert "unknown dataset or command 'nist', did you mean mnist?" in done.stderr
    assert not done.stdout
    assert "run.sh: error: no folder photos/: give mnist, " in run(tmp_path, "photos/").stderr


def test_setup_and_help(tmp_path):
    shown = run(tmp_path, "--help")
    assert "sbatch run.sh cifar10" in shown.stdout
    assert "SBATCH --" not in shown.stdout
    ready = run(tmp_path, "setup", "shapes")
    assert ready.returncode == 0
    assert "shapes is ready: 20,000 images" in ready.stdout


@pytest.mark.parametrize(
    ("status", "restarts", "array", "expected"),
    [
        (75, "0", "", "requeue 7"),
        (137, "7", "", "requeue 7"),
        (143, "", "", "requeue 7"),
        (138, "", "6_3", "requeue 6_3"),
        (75, "8", "", None),
        (1, "", "", None),
        (2, "", "", None),
    ],
)
def test_a_job_that_was_stopped_is_queued_again_eight_times_at_most(
    tmp_path, status, restarts, array, expected
):
    for name, line in (("srun", f"exit {status}"), ("scontrol", f'echo "$@" >{tmp_path}/asked')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    of_array = (
        dict(zip(("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"), array.split("_"))) if array else {}
    )
    done = run(
        tmp_path,
        "shapes",
        SLURM_JOB_ID="7",
        **({"SLURM_RESTART_COUNT": restarts} if restarts else {}),
        **of_array,
        PATH=f"{tmp_path}:{os.environ['PATH']}",
    )
    assert (tmp_path / "asked").is_file() == (expected is not None)
    if expected:
        assert (tmp_path / "asked").read_text().strip() == expected
        assert done.returncode == 0
    else:
        assert done.returncode == status
    assert f"training on shapes: runs/shapes-{array or 7}" in done.stdout
    hint = "submit the same command with --run-dir runs/shapes-7"
    assert (hint in done.stderr) == (restarts == "8")


def test_what_a_job_adds_to_the_command(tmp_path):
    """A task of an array has its own seed unless --seed is given. A restarted job resumes, even
    with --resume none. --devices is also passed to Inference.py."""
    (tmp_path / "srun").write_text('#!/bin/sh\necho "srun $*"\n')
    (tmp_path / "srun").chmod(0o755)
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_ARRAY_JOB_ID": "6",
        "SLURM_ARRAY_TASK_ID": "3",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    arguments = [
        "shapes",
        "--run-dir",
        run_dir,
        "--resume",
        "none",
        "--devices",
        "2",
        "--seed",
        "9",
    ]
    for restarts, resumed in (("0", ""), ("1", " --resume auto")):
        done = run(tmp_path, *arguments, **job, SLURM_RESTART_COUNT=restarts)
        training, sampling = [line for line in done.stdout.splitlines() if line.startswith("srun")][
            :2
        ]
        assert (
            f"--seed 3 --run-dir {run_dir} --resume none --devices 2 "
            f"--seed 9{resumed} --run-dir {run_dir}" in training
        )
        assert sampling.endswith("--devices 2")
        (run_dir / "checkpoints" / "step_00000005.ckpt").touch()


@pytest.mark.parametrize("locked", [True, False])
def test_locked_installs_the_versions_of_the_lock_file(tmp_path, locked):
    """With a stand-in for python3, which prints what pip would get."""
    project, programs = tmp_path / "project", tmp_path / "programs"
    project.mkdir(), programs.mkdir()
    for name in ("run.sh", "requirements.txt", "requirements.lock", "train.py"):
        shutil.copy(ROOT / name, project)
    stand_in = programs / "python3"
    stand_in.write_text(
        '#!/bin/sh\nif [ "$2" = venv ]; then mkdir -p .venv/bin; cp "$0" .venv/bin/python; fi\n'
        'echo "$*"\n'
    )
    stand_in.chmod(0o755)
    words = ["--locked"] if locked else []
    done = subprocess.run(
        ["bash", "run.sh", *words, "setup", "shapes"],
        cwd=project,
        capture_output=True,
        text=True,
        env={"PATH": f"{programs}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr
    assert "pip install" in done.stdout
    assert (f"-c {project}/requirements.lock" in done.stdout) == locked
    assert "train.py --dataset shapes --prepare-data" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("shapes", "--locked"), "--locked comes first: bash run.sh --locked shapes"),
        (("demo", "--out", "x"), "demo does not accept --out"),
        (("demo", "--ckpt=x"), "demo does not accept --ckpt=x"),
        (("demo", "--class", "3"), "demo does not accept --class"),
    ],
)
def test_flags_in_the_wrong_place_give_a_one_line_error(tmp_path, words, message):
    done = run(tmp_path, *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_help_and_version_are_printed(tmp_path):
    shown = run(tmp_path, "demo", "--help")
    assert shown.returncode == 0
    assert "bash run.sh demo" in shown.stdout
    version = run(tmp_path, "--version")
    assert version.returncode == 0
    assert "DDPM 1." in version.stdout
    assert "sampling" not in version.stdout


def test_the_lock_file_has_every_requirement():
    def names(file):
        lines = (ROOT / file).read_text().splitlines()
        return {re.split(r"[=<>!# ]", line)[0] for line in lines if line and line[0] != "#"}

    assert {name.lower() for name in names("requirements.txt")} <= names("requirements.lock")


@pytest.mark.slow
def test_demo_names_the_classes_and_its_time(tmp_path):
    """With one of the pretrained models, in a copy of the project."""
    project = tmp_path / "project"
    (project / "pretrained").mkdir(parents=True)
    for name in ("Inference.py", "make_gif.py", "train.py", "run.sh", "Unet.py", "Dataset.py"):
        shutil.copy(ROOT / name, project)
    shutil.copy(ROOT / "DiffusionModel.py", project)
    for name in "runtime image_data diffusion checkpoints sampling evaluation run_page".split():
        (project / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "pretrained" / "shapes.safetensors", project / "pretrained")
    done = run(tmp_path, "demo", "--steps", 1, "--num", 7, script=project / "run.sh")
    assert done.returncode == 0, done.stderr
    names = "circle, triangle, square, pentagon, star, circle, triangle"
    assert re.search(rf"^shapes: 7 images in \d+ s, columns {names}$", done.stdout, re.MULTILINE)
    assert re.search(r"== done in \d+ min \d+ s: open runs/demo/index.html", done.stdout)
    page = (project / "runs" / "demo" / "index.html").read_text()
    assert page.count("<span>") == 7
    assert (project / "runs" / "demo" / "shapes.gif").is_file()


@pytest.fixture
def stand_in(tmp_path):
    """A program that prints its arguments instead of running them with Python."""
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$*"\n')
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("joined", [False, True])
def test_files_are_found_from_another_folder(tmp_path, stand_in, joined):
    """The name of a pretrained model or a schedule, and "auto", stay as they are."""
    work = tmp_path / "work"
    (work / "runs").mkdir(parents=True)
    for name in ("m.safetensors", "betas.txt", "runs/x.ckpt", "linear"):
        (work / name).touch()

    def training(*values):
        words = [(f"{flag}={value}",) if joined else (flag, value) for flag, value in values]
        done = run(work, "shapes", *(word for pair in words for word in pair), PYTHON=stand_in)
        assert done.returncode == 0, done.stderr
        (line,) = [one for one in done.stdout.splitlines() if one.startswith("train.py")]
        return line.replace("=", " ")

    line = training(
        ("--init-from", "m.safetensors"), ("--schedule", "betas.txt"), ("--data-root", "new")
    )
    assert f"--init-from {work}/m.safetensors" in line
    assert f"--schedule {work}/betas.txt" in line
    assert f"--data-root {work}/new" in line
    assert f"--resume {work}/runs/x.ckpt" in training(("--resume", "runs/x.ckpt"))
    line = training(("--resume", "auto"), ("--init-from", "cifar10"), ("--schedule", "linear"))
    assert "--resume auto --init-from cifar10 --schedule linear" in line


@pytest.mark.parametrize(
    ("words", "preset"),
    [
        ((), ["quick"]),
        (("shapes", "--preset", "laptop"), ["quick", "laptop"]),  # the last one counts
        (("mnist",), []),
    ],
)
def test_shapes_have_the_quick_preset_by_default(tmp_path, stand_in, words, preset):
    done = run(tmp_path, *words, PYTHON=stand_in)
    (line,) = [one for one in done.stdout.splitlines() if one.startswith("train.py")]
    assert re.findall(r"--preset (\w+)", line) == preset


def test_setup_puts_the_data_where_the_user_is(tmp_path, stand_in):
    done = run(tmp_path, "setup", "shapes", "--data-root", "data", PYTHON=stand_in)
    assert f"train.py --dataset shapes --data-root {tmp_path}/data --prepare-data" in done.stdout


def test_a_tilde_in_the_run_directory_is_the_home_folder(tmp_path, stand_in):
    """The shell does not expand it in --run-dir=~/x."""
    done = run(tmp_path, "shapes", "--run-dir=~/x", PYTHON=stand_in, HOME=str(tmp_path / "home"))
    assert f"--run-dir {tmp_path}/home/x" in done.stdout


@pytest.mark.parametrize("flag", ["--input-image", "--mask", "--interpolate"])
def test_demo_finds_images_from_another_folder(tmp_path, stand_in, flag):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    names = ["a.png", "b.png"] if flag == "--interpolate" else ["a.png"]
    done = run(tmp_path, "demo", flag, *names, PYTHON=stand_in)
    assert " ".join([flag, *(f"{tmp_path}/{name}" for name in names)]) in done.stdout


@pytest.mark.parametrize(("given", "found"), [("auto", "auto"), ("m.ckpt", "{work}/m.ckpt")])
def test_demo_finds_a_guide_from_another_folder(tmp_path, stand_in, given, found):
    for name in ("auto", "m.ckpt"):
        (tmp_path / name).touch()
    done = run(tmp_path, "demo", "--guide-with", given, PYTHON=stand_in)
    assert f"--guide-with {found.format(work=tmp_path)}\n" in done.stdout
