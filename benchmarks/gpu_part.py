"""What the parts of gpu.py share: their flags, their results, and the networks that they use."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import train
from image_data.shapes import draw
from runtime.launcher import Machine, launch
from training.settings import TrainingSettings
from training.setup import TrainingRun, set_up

ROOT = Path(__file__).resolve().parent.parent
Results = Iterator[dict[str, Any]]

# flags that make any preset tiny, for a rehearsal
TINY = "--width 8 --mults 1,2 --attention 4 --blocks 1 --image-size 8 --batch-size 8".split()


@dataclass(frozen=True)
class Options:
    """device: "cuda", or "cpu" for a rehearsal. out: the folder for files."""

    device: str
    rehearse: bool
    out: Path
    dataset: str
    data_root: str

    def set_up(self, flags: str, precision: str = "auto") -> tuple[TrainingRun, Machine]:
        """A run of train.py with these flags on the built-in shapes, ready to train."""
        machine = launch("gpu.py", self.device, precision)
        words = [*flags.split(), "--dataset", "shapes", "--device", self.device]
        words += TINY if self.rehearse else []
        preset = train.build_parser().parse_args(words).preset
        flags_of_run = vars(train.parse_with_preset(words, preset))
        settings = TrainingSettings.from_flags(flags_of_run, preset)
        return set_up(settings, machine), machine


def write_tiny_dataset(file: Path) -> Path:
    """Write 64 training and 64 test images of the built-in shapes, 8x8, with their labels."""
    arrays = {}
    for seed, split in enumerate(("train", "test")):
        images, labels = draw(64, 8, seed)
        arrays[f"{split}_images"] = images.permute(0, 2, 3, 1).numpy()
        arrays[f"{split}_labels"] = labels.numpy()
    np.savez(file, **arrays)
    return file


def main(parts: dict[str, Callable[[Options], Results]]) -> None:
    """Run the part that the command line names; print each result as a line of JSON.

    Everything else that is printed goes to standard error, also what other processes and C code
    print.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=parts)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    device = "cpu" if args.rehearse else "cuda"
    out, dataset = args.out.resolve(), args.dataset
    if args.rehearse:
        dataset = str(write_tiny_dataset(out / "tiny.npz"))
    options = Options(device, args.rehearse, out, dataset, args.data_root)
    failed = False
    for result in parts[args.part](options):
        print(json.dumps(result), file=answers, flush=True)
        failed = failed or result.get("passed") is False
    sys.exit(int(failed))
