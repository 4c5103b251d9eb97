"""Programs killed with -9 at random moments: nothing is lost, and nothing is half-written.

    python -m pytest tests/test_strain.py --all                              # 12 kills
    python -m pytest tests/test_strain.py --all -s --kills 200 --seed 1      # 200, with this seed

Training, sampling, measuring, converting and the GIF are killed again and again. After each kill
every file that has its final name must load, and the newest checkpoint must not be older than
before. The final result of a command must equal that of an undisturbed run, bit for bit. The seed
decides what is killed and when, as a share of its usual time; where in the program that is depends
on the load of the machine.
"""

import csv
import hashlib
import json
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK, ROOT
from PIL import Image
from safetensors.torch import load_file
from training_runs import RUN, Process, fit

from checkpoints.checkpoint_file import read_checkpoint_file
from checkpoints.run_dir import newest_checkpoint, step_of

TRAIN = [
    *RUN,
    *"--max-steps 60 --save-every 10 --val-every 30 --posthoc-ema --class-conditional".split(),
]
MEASURE = "--device cpu --num 24 --seeds 0,1 --bound 8 --terms 2".split()
MEASURE_QUICKLY = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import evaluate
from evaluation import classifier
from sampling import sample_sets
sample_sets.IMAGES_PER_FILE = 8
for name, value in {QUICK}.items():
    setattr(classifier, name, value)
sys.exit(evaluate.main(sys.argv[1:]))
"""


class Command:
    """A command in its own folder, and the results that it writes there when undisturbed."""

    def __init__(self, name: str, parent: Path, model: Path, words: list):
        self.name, self.folder, self.model = name, parent / name, model
        self.words = [str(word).replace("HERE", str(self.folder)) for word in words]
        self.clear()
        began = time.monotonic()
        self.run_to_its_end()
        self.seconds = time.monotonic() - began
        self.expected = self.results()
        self.clear()

    def clear(self) -> None:
        """Empty the folder, and copy the model into it if the command writes beside the model."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        if self.name == "evaluate":
            shutil.copytree(self.model, self.folder / "run")

    def start(self) -> Process:
        said = self.folder.parent / f"said-{self.name}"
        if self.name == "evaluate":
            return Process(said, "-c", MEASURE_QUICKLY, *self.words, script="")
        return Process(said, *self.words[1:], script=self.words[0])

    def run_to_its_end(self) -> None:
        process = self.start()
        assert process.ends() == 0, process.err

    def results(self) -> dict[str, str]:
        """A hash of the contents of each file."""
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        names = {str(file.relative_to(self.folder)): file for file in files}
        assert not [name for name in names if ".tmp." in name]
        ignored = ("config.json", ".lock", "events.out", "hparams.yaml", ".sha256")
        return {
            name: content_hash(file)
            for name, file in sorted(names.items())
            if not any(part in name for part in ignored)
        }

    def progress(self) -> int:
        newest = newest_checkpoint(self.folder / "run")
        return step_of(newest) if newest else 0

    def killed_after(self, seconds: float) -> bool:
        """Start the command and kill it after so many seconds; False if it ended before."""
        before = self.progress()
        began = time.monotonic()
        process = self.start()
        deadline = began + seconds
        while process.popen.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        if process.popen.poll() is None:
            process.kill(signal.SIGKILL)
        status = process.ends()
        assert status in (0, -signal.SIGKILL), process.err
        check_complete(self.folder)
        assert self.progress() >= before
        if status == 0:
            self.seconds = min(self.seconds, time.monotonic() - began)
            assert self.results() == self.expected
            self.clear()
        return status != 0


def without_times(value):
    """The same JSON without what depends on the speed of the machine."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if "seconds" not in k}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def content_hash(file: Path) -> str:
    """A hash of the contents of a file, for a checkpoint without the times in it."""
    digest = hashlib.sha256()
    if file.suffix == ".ckpt":
        found = read_checkpoint_file(file)
        parts = ("state_dict", "ema", "power", "optimizer_states", "lr_schedulers", "global_step")
        add_to(digest, {name: found[name] for name in parts if name in found})
    elif file.suffix == ".pt":  # torch.save writes the name of the temporary file, too
        add_to(digest, torch.load(file, weights_only=True))
    elif file.name.startswith("seed"):  # evaluate.py's samples and how long they took
        with np.load(file) as archive:
            digest.update(b"".join(archive[n].tobytes() for n in archive if n != "cost"))
    elif file.name == "metrics.json":
        add_to(digest, json.dumps(without_times(json.loads(file.read_text()))))
    else:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def add_to(digest, value) -> None:
    """Add a nested value with tensors to a hash."""
    if isinstance(value, torch.Tensor):
        digest.update(value.numpy().tobytes())
    elif isinstance(value, dict):
        for name in sorted(value, key=str):
            digest.update(str(name).encode())
            add_to(digest, value[name])
    elif isinstance(value, list | tuple):
        for item in value:
            add_to(digest, item)
    else:
        digest.update(repr(value).encode())


def load_csv(file: Path) -> None:
    rows = list(csv.reader(file.open(newline="")))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert file.read_bytes().endswith(b"\n")


def load_npz(file: Path) -> None:
    with np.load(file) as archive:
        for name in archive:
            assert archive[name] is not None


def load_image(file: Path) -> None:
    with Image.open(file) as image:
        for frame in range(getattr(image, "n_frames", 1)):
            image.seek(frame)
            image.load()


LOADERS = {
    ".ckpt": read_checkpoint_file,
    ".csv": load_csv,
    ".npz": load_npz,
    ".npy": np.load,
    ".json": lambda file: json.loads(file.read_text()),
    ".safetensors": load_file,
    ".pt": lambda file: torch.load(file, weights_only=True),
    **dict.fromkeys((".png", ".gif"), load_image),
    **dict.fromkeys((".sha256", ".yaml"), lambda file: None),  # read with its checkpoint; hparams
}


def check_complete(folder: Path) -> None:
    """Load every file that has its final name, except those that TensorBoard appends to."""
    for file in folder.rglob("*"):
        if file.is_file() and not file.name.startswith((".", "events.out")):
            LOADERS[file.suffix](file)


@pytest.fixture
def commands(tiny_data, conditional_run, sampled, tmp_path) -> list[Command]:
    model, plain = newest_checkpoint(conditional_run), tmp_path / "plain"
    of_diffusers = "--max-steps 2 --width 6 --mults 1".split()  # its normalizations have one group
    assert fit(tiny_data, plain, *of_diffusers) == 0
    sampling = "--num 300 --batch-size 50 --sampler ddpm --save-steps 0,10,20 --device cpu"
    to_diffusers = "--to diffusers --out HERE/pipe"
    lines = {
        "train": ["train.py", "--dataset", tiny_data, "--run-dir", "HERE/run", *TRAIN],
        "sample": ["Inference.py", "--ckpt", model, "--out", "HERE", *sampling.split()],
        "evaluate": ["--ckpt", "HERE/run", "--data-root", "HERE/data", *MEASURE],
        "gif": ["make_gif.py", sampled / "trajectory.npz", *"--out HERE/x.gif --scale 20".split()],
        "safetensors": [
            *("convert.py", "--ckpt", model),
            *"--to safetensors --out HERE/x.safetensors".split(),
        ],
        "diffusers": ["convert.py", "--ckpt", plain, *to_diffusers.split()],
    }
    return [Command(name, tmp_path, conditional_run, words) for name, words in lines.items()]


@pytest.mark.slow
def test_killed_at_random_moments(commands, pytestconfig):
    seed = pytestconfig.option.seed
    if seed is None:
        seed = random.randrange(10**6)
    dice, killed, completed = random.Random(seed), Counter(), Counter()
    weights = [4 if command.name in ("train", "evaluate") else 1 for command in commands]
    while sum(killed.values()) < pytestconfig.option.kills:
        command = dice.choices(commands, weights)[0]
        was_killed = command.killed_after(dice.uniform(0, 1) * command.seconds)
        (killed if was_killed else completed)[command.name] += 1
        print("seed", seed, "killed", dict(killed), "completed", dict(completed), flush=True)
    for command in commands:
        command.run_to_its_end()
        assert command.results() == command.expected, command.name
