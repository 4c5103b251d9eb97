"""Parts of gpu.py: the speedrun preset on CIFAR-10, and what comes of it.

train     train.py --preset speedrun
samples   100 samples, and a grid of the first 64
export    the averaged weights in half precision
evaluate  5000 samples: their Frechet distance in classifier features, and the shares of the classes
"""

import csv
import json
import subprocess
import sys
import time
from typing import Any

import gpu_part
from gpu_part import ROOT, Options, Results

import evaluate as evaluate_script
from evaluation import classifier


def script(name: str, *words: object) -> None:
    """Run a script of this project. Its output goes to standard error."""
    command = [sys.executable, str(ROOT / name), *map(str, words)]
    subprocess.run(command, check=True, stdout=sys.stderr, cwd=ROOT)


def last(rows: list[dict[str, str]], column: str) -> float | None:
    """The last value in this column of metrics.csv."""
    values = [row[column] for row in rows if row.get(column)]
    return float(values[-1]) if values else None


def train(options: Options) -> Results:
    run = options.out / "speedrun"
    words: list[object] = ["--preset", "speedrun", "--device", options.device, "--run-dir", run]
    words += ["--resume", "none"]
    words += ["--dataset", options.dataset, "--data-root", options.data_root]
    words += [*gpu_part.TINY, "--max-steps", 4, "--val-images", 8] if options.rehearse else []
    began = time.monotonic()
    script("train.py", *words)
    seconds = round(time.monotonic() - began, 1)
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found: dict[str, Any] = {name: last(rows, name) for name in ("train_loss", "val_loss")}
    yield {"seconds_with_startup": seconds, **found}


def samples(options: Options) -> Results:
    out = options.out / "samples"
    words: list[object] = ["--ckpt", options.out / "speedrun", "--device", options.device]
    words += ["--num", 10 if options.rehearse else 100, "--out", out, "--no-preview"]
    script("Inference.py", *words, *(["--steps", 2] if options.rehearse else []))
    yield {"grid": str(out / "t0000.png")}


def export(options: Options) -> Results:
    file = options.out / "speedrun.safetensors"
    words = ["--ckpt", options.out / "speedrun", "--to", "safetensors", "--half", "--out", file]
    script("convert.py", *words)
    yield {"file": str(file), "bytes": file.stat().st_size}


def evaluate(options: Options) -> Results:
    run = options.out / "speedrun"
    words: list[object] = ["--ckpt", run, "--device", options.device, "--seeds", 0, "--bound", 0]
    words += ["--data-root", options.data_root, "--num", 8 if options.rehearse else 5000]
    if options.rehearse:
        words += ["--steps", 2, "--data-root", options.out]
        classifier.MIN_STEPS, classifier.WIDE_WIDTH, classifier.NARROW_WIDTH = 4, 16, 16
    assert evaluate_script.main([str(word) for word in words]) == 0
    yield distances(json.loads((run / "metrics.json").read_text()))


def distances(metrics: dict[str, Any]) -> dict[str, Any]:
    """Select the distance in classifier features and the class shares from metrics.json."""
    found = metrics["distances"]["classifier"]
    real = found["to_train"]
    return {
        "frechet": real["frechet"]["mean"],
        "frechet_of_real_images": real["frechet"]["floor"],
        "precision": real["precision"]["mean"],
        "recall": real["recall"]["mean"],
        "shares": dict(zip(found["class_names"], found["shares"])),
        "of_the_requested_class": found["as_asked"]["mean"],
        "evaluations": found["sampling"]["evaluations_each"],
    }


if __name__ == "__main__":
    parts = {"train": train, "samples": samples, "export": export, "evaluate": evaluate}
    gpu_part.main(parts)
