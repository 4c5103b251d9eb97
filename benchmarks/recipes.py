"""Compare training recipes: the Frechet distance after the same number of CPU seconds.

    python benchmarks/recipes.py --dataset fashionmnist --cpu-seconds 300 --seeds 0,1,2     # hours
    python benchmarks/recipes.py --recipe laptop,linear --cpu-seconds 120                   # 20 min

Every trial trains in one thread for the same CPU time, which what else runs on the machine
disturbs little; 300 s are about 150 s on two cores. Then it samples 1000 images with UniPC in 20
steps. The distance is Frechet's to all training images, in the features of `Classifier`. Prints a
line a trial, and the table with mean and range over the seeds.
"""

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import train
from evaluation.distances import frechet, statistics
from evaluation.features import extract_features, load_feature_extractor, reference_features
from runtime import devices
from sampling.plan import plan_sampling
from sampling.sample_sets import sample_batch
from training.ema import Ema

RECIPES = {  # what each changes in the laptop preset
    "laptop": [],
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
    "classes": ["--class-conditional"],
}


def trial(
    name: str, dataset: str, root: str, seconds: float, seed: int, count: int
) -> dict[str, object]:
    """Train, sample, measure: name, seed, steps and distance."""
    parser = train.build_parser()
    parser.set_defaults(**train.PRESETS["laptop"])
    args = parser.parse_args(
        ["--dataset", dataset, "--data-root", root, "--seed", str(seed), *RECIPES[name]]
    )
    run = train.build(
        args, "laptop", argparse.Namespace(device=torch.device("cpu"), global_rank=0, world_size=1)
    )
    model, ema = run.model, Ema(args.ema_decay)
    configured = model.configure_optimizers()
    optimizer, warmup = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    ema.on_fit_start(None, model)  # type: ignore[arg-type]
    bf16 = devices.pick_precision("cpu", "auto") != "32-true"
    began, step = time.process_time(), 0
    for batch in itertools.chain.from_iterable(itertools.repeat(run.batches)):
        if time.process_time() - began > seconds:
            break
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model.get_loss(batch, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        warmup.step()
        ema.on_step_end(None, model)  # type: ignore[arg-type]
        step += 1
    plan = plan_sampling(model, precision=devices.pick_precision("cpu", "auto"))
    with ema.applied(model):
        images = [
            sample_batch(model, plan, range(first, first + 100), seed)
            for first in range(0, count, 100)
        ]
    extractor = load_feature_extractor("classifier", run.data, run.unseen, root)
    real = reference_features(extractor, run.data, root)
    features, _ = extract_features(extractor, torch.cat(images))
    distance = frechet(statistics(features), statistics(real))
    return {"recipe": name, "seed": seed, "steps": step, "distance": round(distance, 2)}


def main() -> None:
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
    if args.images % 100 or args.images < 200:
        parser.error(f"--images {args.images} must be a multiple of 100, and at least 200")
    torch.set_num_threads(1)
    table = {}
    for name in args.recipe.split(","):
        found = []
        for seed in args.seeds.split(","):
            found.append(
                trial(name, args.dataset, args.data_root, args.cpu_seconds, int(seed), args.images)
            )
            print(json.dumps(found[-1]), flush=True)
        table[name] = found
    print("\n| recipe | distance, mean | lowest and highest | steps |\n|---|---|---|---|")
    for name, found in table.items():
        distances = [float(one["distance"]) for one in found]  # type: ignore[arg-type]
        mean, low, high = sum(distances) / len(distances), min(distances), max(distances)
        print(f"| {name} | {mean:.2f} | {low:.2f} to {high:.2f} | {found[0]['steps']} |")


if __name__ == "__main__":
    main()
