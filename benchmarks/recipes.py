"""Compare training recipes by the Frechet distance after the same CPU time.

    # all recipes: hours
    python benchmarks/recipes.py --dataset fashionmnist --cpu-seconds 300 --seeds 0,1,2
    # 20 minutes
    python benchmarks/recipes.py --recipe laptop,linear --cpu-seconds 120

Every trial trains in one thread for about the same CPU time, which other programs hardly affect;
300 s are about 150 s on two cores. The number of steps is measured first, because the learning rate
schedule depends on it. Then the trial samples 1000 images with UniPC and the recipe's guidance, and
measures their Frechet distance to all training images in the features of the dataset's classifier.
It prints a line for each trial, and a table with mean and range over the seeds.
"""

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import train
from checkpoints.early_average import guiding_step
from DiffusionModel import DiffusionModel
from evaluation.distances import frechet, statistics
from evaluation.features import extract_features, load_feature_extractor, reference_features
from runtime.devices import pick_precision
from runtime.launcher import launch
from sampling.guidance import Guide
from sampling.plan import plan_sampling
from sampling.sample_sets import sample_batch
from training.ema import Ema
from training.settings import TrainingSettings
from training.setup import TrainingRun, set_up

BATCH = 100  # images sampled at once

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
    ],
    "cooldown-0.3": ["--cooldown", "0.3"],
    "muon-0.04": ["--muon-lr", "0.04"],
    "guidance-1.5": ["--guidance", "1.5"],
    "guidance-3": ["--guidance", "3"],
    "linear": ["--schedule", "linear"],
    "lognormal": ["--schedule", "linear", "--t-sampling", "lognormal"],
    "sigmoid": ["--schedule", "sigmoid"],
    "stratified": ["--t-sampling", "stratified"],
    "min-snr": ["--weighting", "min-snr"],
    "p2": ["--weighting", "p2"],
    "edm-weight": ["--weighting", "edm"],
    "eps": ["--parameterization", "eps"],
    "x0": ["--parameterization", "x0"],
    "learned": ["--variance", "learned"],
    "film": ["--film"],
    "lr-4e-3": ["--lr", "4e-3"],
    "batch-16": ["--batch-size", "16"],
}
TIMED = 20  # steps whose CPU time is measured before a trial


def prepare(name: str, dataset: str, root: str, seed: int) -> TrainingRun:
    """Set up a run of train.py with the flags of a recipe."""
    parser = train.build_parser()
    parser.set_defaults(**train.PRESETS["laptop"])
    args = parser.parse_args(
        ["--dataset", dataset, "--data-root", root, "--seed", str(seed), *RECIPES[name]]
    )
    settings = TrainingSettings.from_flags(vars(args), "laptop")
    return set_up(settings, launch("recipes.py", device="cpu"))


class Training:
    """A training loop without a Trainer, with the average of the weights: `total` steps."""

    def __init__(self, run: TrainingRun, total: int):
        self.run, self.total, self.model = run, total, run.model
        configured = self.model.configure_optimizers(total)
        self.optimizer = configured["optimizer"]
        self.schedule = configured["lr_scheduler"]["scheduler"]
        self.ema = Ema(run.settings.ema_decay)
        self.ema.on_fit_start(None, self.model)  # type: ignore[arg-type]
        self.bf16 = pick_precision("cpu", "auto") == "bf16"
        self.early: dict[str, torch.Tensor] = {}

    def steps(self, count: int) -> None:
        """Take the first `count` steps."""
        batches = itertools.chain.from_iterable(itertools.repeat(self.run.batches))
        for step, batch in zip(range(count), batches):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                loss = self.model.get_loss(batch, step)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.run.settings.clip)
            self.optimizer.step()
            self.schedule.step()
            self.ema.on_step_end(None, self.model)  # type: ignore[arg-type]
            if step + 1 == guiding_step(self.total):
                self.early = {name: value.clone() for name, value in self.ema.weights.items()}

    def guide(self) -> Guide | None:
        """The early average as a guide, if the recipe has guidance and no labels."""
        if self.model.settings.guidance == 1 or self.model.unet.classes:
            return None
        worse = DiffusionModel(**self.model.hparams).eval().requires_grad_(False)
        worse.unet.load_state_dict(self.early)
        return Guide(worse, "early")


def steps_within(name: str, dataset: str, root: str, seconds: float) -> int:
    """Return how many steps of this recipe fit into this many CPU seconds."""
    training = Training(prepare(name, dataset, root, seed=0), TIMED)
    training.steps(3)
    start = time.process_time()
    training.steps(TIMED)
    return max(1, round(seconds * TIMED / (time.process_time() - start)))


def sample(model: DiffusionModel, guide: Guide | None, count: int, seed: int) -> torch.Tensor:
    """Sample `count` images, uint8 (N,C,H,W)."""
    guidance = model.settings.guidance if guide or model.unet.classes else 1.0
    plan = plan_sampling(
        model, guidance=guidance, guide=guide, precision=pick_precision("cpu", "auto")
    )
    batches = [range(first, first + BATCH) for first in range(0, count, BATCH)]
    return torch.cat([sample_batch(model, plan, indices, seed) for indices in batches])


def trial(name: str, dataset: str, root: str, steps: int, seed: int, count: int) -> dict[str, Any]:
    """Train, sample and measure; return name, seed, steps and distance."""
    run = prepare(name, dataset, root, seed)
    training = Training(run, steps)
    training.steps(steps)
    with training.ema.applied(run.model):
        images = sample(run.model, training.guide(), count, seed)
    extractor = load_feature_extractor("classifier", run.data, run.unseen, root)
    real = reference_features(extractor, run.data, root)
    features, _ = extract_features(extractor, images)
    distance = frechet(statistics(features), statistics(real))
    return {"recipe": name, "seed": seed, "steps": steps, "distance": round(distance, 2)}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="fashionmnist", help="(fashionmnist)")
    parser.add_argument("--data-root", default="data", help="(data)")
    parser.add_argument(
        "--recipe", default=",".join(RECIPES), help=f"some of {', '.join(RECIPES)} (all)"
    )
    parser.add_argument(
        "--cpu-seconds", type=float, default=300, help="of training, in one thread (300)"
    )
    parser.add_argument("--seeds", default="0,1,2", help="(0,1,2)")
    parser.add_argument(
        "--images",
        type=int,
        default=1000,
        help="sampled for the distance, a multiple of 100 (1000)",
    )
    args = parser.parse_args()
    if unknown := set(args.recipe.split(",")) - RECIPES.keys():
        parser.error(f"unknown recipe {min(unknown)}: choose from {', '.join(RECIPES)}")
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
        steps = steps_within(name, args.dataset, args.data_root, args.cpu_seconds)
        for seed in args.seeds.split(","):
            result = trial(name, args.dataset, args.data_root, steps, int(seed), args.images)
            print(json.dumps(result), flush=True)
            trials.append(result)
        rows.append(table_row(name, trials))
    print("\n| recipe | distance, mean | lowest and highest | steps |\n|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
