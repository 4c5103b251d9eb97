"""Compare training recipes by the Frechet distance after the same CPU time.

    # all recipes: hours
    python benchmarks/recipes.py --dataset fashionmnist --cpu-seconds 300 --seeds 0,1,2
    # 20 minutes
    python benchmarks/recipes.py --recipe laptop,linear --cpu-seconds 120
    # the same number of steps
    python benchmarks/recipes.py --recipe laptop,v --steps 600 --seeds 0

Every trial trains in one thread for about the same CPU time, which other programs hardly affect;
300 s are about 150 s on two cores. The number of steps is measured first, because the learning rate
schedule depends on it. Then the trial samples 1000 images with UniPC and the recipe's guidance, and
measures their Frechet distance to all training images in the features of the dataset's classifier.
It prints a line for each trial, and a table with mean and range over the seeds.

The recipes diffusers and lucidrains are other projects, which sample with DDIM and no guidance (see
trainings.py). `bash run.sh bench` installs their packages.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from trainings import BATCH, PEERS, PeerTraining, RecipeTraining, Training

from evaluation.distances import frechet, statistics
from evaluation.features import extract_features, load_feature_extractor, reference_features

# the flags that each recipe adds to the laptop preset
RECIPES = {
    "laptop": [],
    "unguided": ["--guidance", "1"],
    "no-classes": ["--no-class-conditional"],
    "adam": ["--optimizer", "adam"],
    "constant-rate": ["--lr-schedule", "constant"],
    "before-muon": [
        *("--optimizer", "adam", "--lr-schedule", "constant", "--warmup", "200"),
        *("--no-class-conditional", "--guidance", "1"),
        *("--parameterization", "v", "--weighting", "plain", "--no-film"),
    ],
    "cooldown-0.3": ["--cooldown", "0.3"],
    "muon-0.04": ["--muon-lr", "0.04"],
    "guidance-1.5": ["--guidance", "1.5"],
    "guidance-3": ["--guidance", "3"],
    "linear": ["--schedule", "linear"],
    "lognormal": ["--schedule", "linear", "--t-sampling", "lognormal"],
    "sigmoid": ["--schedule", "sigmoid"],
    "stratified": ["--t-sampling", "stratified"],
    "x0": ["--weighting", "plain"],
    "x0-min-snr": ["--weighting", "min-snr"],
    "x0-edm": ["--weighting", "edm"],
    "v": ["--parameterization", "v", "--weighting", "plain"],
    "v-min-snr": ["--parameterization", "v", "--weighting", "min-snr"],
    "v-min-snr+1": ["--parameterization", "v"],
    "eps": ["--parameterization", "eps", "--weighting", "plain"],
    "eps-p2": ["--parameterization", "eps", "--weighting", "p2"],
    "learned": ["--variance", "learned"],
    "no-film": ["--no-film"],
    "lr-4e-3": ["--lr", "4e-3"],
    "batch-16": ["--batch-size", "16"],
}
TIMED = 20  # steps whose CPU time is measured before a trial


def begin(name: str, args: argparse.Namespace, seed: int, total: int) -> Training:
    """Prepare a training of `total` steps."""
    if name in PEERS:
        return PeerTraining(name, args.dataset, args.data_root, seed)
    return RecipeTraining(RECIPES[name], args.dataset, args.data_root, seed, total)


def steps_within(name: str, args: argparse.Namespace) -> int:
    """Return how many steps of this recipe fit into --cpu-seconds."""
    training = begin(name, args, seed=0, total=TIMED)
    training.steps(3)
    start = time.process_time()
    training.steps(TIMED)
    return max(1, round(args.cpu_seconds * TIMED / (time.process_time() - start)))


def trial(name: str, args: argparse.Namespace, steps: int, seed: int) -> dict[str, Any]:
    """Train, sample and measure; return name, seed, steps and distance."""
    training = begin(name, args, seed, steps)
    training.steps(steps)
    images = training.sample(args.images, seed)
    extractor = load_feature_extractor("classifier", training.data, training.unseen, args.data_root)
    real = reference_features(extractor, training.data, args.data_root)
    features, _ = extract_features(extractor, images)
    distance = frechet(statistics(features), statistics(real))
    return {"recipe": name, "seed": seed, "steps": steps, "distance": round(distance, 2)}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="fashionmnist", help="(fashionmnist)")
    parser.add_argument("--data-root", default="data", help="(data)")
    known = [*RECIPES, *PEERS]
    parser.add_argument("--recipe", default=",".join(RECIPES), help=f"some of {', '.join(known)}")
    parser.add_argument(
        "--cpu-seconds", type=float, default=300, help="of training, in one thread (300)"
    )
    parser.add_argument(
        "--steps", type=int, help="of every training, instead of --cpu-seconds (as many as fit)"
    )
    parser.add_argument("--seeds", default="0,1,2", help="(0,1,2)")
    parser.add_argument(
        "--images",
        type=int,
        default=1000,
        help="sampled for the distance, a multiple of 100 (1000)",
    )
    args = parser.parse_args()
    if unknown := set(args.recipe.split(",")) - set(known):
        parser.error(f"unknown recipe {min(unknown)}: choose from {', '.join(known)}")
    if args.images % BATCH or args.images < 200:
        parser.error(f"--images {args.images} must be a multiple of 100, and at least 200")
    return args


def table_row(name: str, trials: list[dict[str, Any]]) -> str:
    """A line of the table: mean, lowest and highest distance over the seeds, and the steps."""
    distances = [trial["distance"] for trial in trials]
    mean = sum(distances) / len(distances)
    extremes = f"{min(distances):.2f} to {max(distances):.2f}"
    return f"| {name} | {mean:.2f} | {extremes} | {trials[0]['steps']} |"


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in args.recipe.split(","):
        trials = []
        steps = args.steps or steps_within(name, args)
        for seed in args.seeds.split(","):
            result = trial(name, args, steps, int(seed))
            print(json.dumps(result), flush=True)
            trials.append(result)
        rows.append(table_row(name, trials))
    print("\n| recipe | distance, mean | lowest and highest | steps |\n|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
