"""What evaluate.py does with its flags: everything that is needed, then the samples, then the measurements with their words and files.

prepared, path = prepare(args, "runs/mnist", processes)     # in every process; nearly all refusals are here
draw(args, prepared, processes)                             # the samples, by all of them
measure(args, prepared)                                     # the rest, by the first alone
"""

import json
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from checkpoints.checkpoint import load_model
from checkpoints.run_dir import read_run_settings
from Dataset import DiffSet
from evaluation import bits_per_dim, metrics
from evaluation.features import load_feature_extractor
from evaluation.metrics import RealImages
from evaluation.results import finite, write_image, write_metrics, write_plot
from evaluation.tables import table
from runtime import compiling
from runtime.processes import Processes
from sampling import sample_sets
from sampling import samplers as Sampler
from sampling.plan import SamplingPlan, plan_sampling

AUDITED = 1000  # samples that are compared with every training image
STEPS = (5, 10, 20, 50)  # of a sweep


def prepare(args: Namespace, path: Path, processes: Processes) -> tuple[Namespace, Path]:
    """The model, the real images, the networks that judge, how samples are drawn: with all that is wrong known before the first
    of them; and the checkpoint's file, for the other processes. Raises ValueError or OSError, in one line."""
    loaded = load_model(path, processes.device, args.weights == "ema", args.ema_length)
    model = loaded.model
    home, swept = args.ckpt if args.ckpt.is_dir() else args.ckpt.parent, args.sweep or ()
    samplers = args.sampler or (Sampler.SAMPLERS if "sampler" in swept else (None,))
    steps = args.steps or (
        [count for count in STEPS if count <= model.T] if "steps" in swept else [None]
    )
    hows = [
        plan_sampling(
            model,
            sampler,
            steps=count,
            grid=args.grid,
            variance=args.variance,
            eta=args.eta or 0.0,
            guidance=args.guidance,
            precision=args.precision,
            compile_mode="" if args.compile == "off" else args.compile,
        )
        for sampler in samplers
        for count in steps
    ]
    weights = args.weights if args.ema_length is None else f"ema of length {args.ema_length:g}"
    prepared = Namespace(
        loaded=loaded, model=model, weights=weights, home=home, hows=hows, judges=[]
    )
    if not hows:
        raise ValueError(
            f"--sweep steps: the model has {model.T} steps, and {min(STEPS)} are the least by default: give --steps"
        )
    if processes.global_rank:
        return prepared, path  # the others only draw samples
    name = args.dataset or read_run_settings(home).get("dataset") or model.hparams["dataset"]
    if not name:
        raise ValueError(f"{path} does not say which images it was trained on: give --dataset")
    data, unseen = (
        DiffSet(train, name, args.data_root, model.unet.size) for train in (True, False)
    )
    if unseen.depth != model.unet.depth:
        raise ValueError(
            f"{unseen.name} has {unseen.depth} channels, and the model {model.unet.depth}: "
            "give the --dataset that it was trained on"
        )
    if (
        model.unet.classes
        and max(int(unseen.labels.max()), int(data.labels.max())) >= model.unet.classes
    ):
        raise ValueError(
            f"{unseen.name} has the label {max(int(unseen.labels.max()), int(data.labels.max()))}, and the model knows "
            f"{model.unet.classes} classes: give the --dataset that it was trained on"
        )
    args.bound = min(1000, len(unseen)) if args.bound is None else args.bound
    for flag, count in (("--bound", args.bound), ("--flow", args.flow)):
        if count > len(unseen):
            raise ValueError(
                f"{flag} {count} is more than the {len(unseen)} unseen images of {unseen.name}"
            )
    if min(len(data), len(unseen)) < 4:
        raise ValueError(
            f"{data.name} has {len(data)} images for training and {len(unseen)} unseen ones: 4 of each are the least"
        )
    args.features = args.features or [
        "classifier" if len(data.classes) > 1 else "efficientnet-lite0"
    ]
    if "classifier" in args.features and len(data.classes) < 2:
        raise ValueError(
            f"{data.name} has no labels, and a classifier needs some: give --features efficientnet-lite0"
        )
    try:  # told now, not after the sampling
        (home / "evaluation").mkdir(exist_ok=True)
        for place in (home, home / "evaluation"):
            (place / ".writable").touch()
            (place / ".writable").unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot write to {home} ({error.strerror}), where metrics.json and the samples go: "
            "copy the checkpoint elsewhere"
        ) from None
    prepared.data, prepared.unseen = data, unseen
    if args.num:
        prepared.judges = [
            load_feature_extractor(
                kind, data, unseen, args.data_root, processes.device, args.inception_weights
            )
            for kind in args.features
        ]
    return prepared, loaded.path


def folder(args: Namespace, prepared: Namespace, how: SamplingPlan) -> Path:
    """Of the samples drawn in this way from these weights."""
    model = prepared.model
    return (
        prepared.home
        / "evaluation"
        / sample_sets.folder_name(how, prepared.loaded.sha256, prepared.weights, model.device.type)
    )


def draw(args: Namespace, prepared: Namespace, processes: Processes) -> None:
    """Write all samples that are not there yet. Raises OSError."""
    place = (processes.global_rank, processes.world_size)
    if args.num and args.compile != "off":
        compile_network(args, prepared, processes)
    for how in prepared.hows if args.num else ():
        for seed in args.seeds:
            sample_sets.write_samples(
                prepared.model,
                how,
                folder(args, prepared, how),
                args.num,
                seed,
                args.batch_size,
                *place,
                f"{how.sampler}, {how.steps} steps, seed {seed}",
            )
    compiling.run_eagerly()  # the likelihood needs gradients, in another precision


def compile_network(args: Namespace, prepared: Namespace, processes: Processes) -> None:
    """Compile the network where some samples are wanted. Where one of the processes cannot, none does, and no sample is said to be."""
    model, worked = prepared.model, True
    if any(
        sample_sets.missing_files(model, folder(args, prepared, how), args.num, seed)
        for how in prepared.hows
        for seed in args.seeds
    ):
        batch = min(args.batch_size, args.num, sample_sets.IMAGES_PER_FILE) * (
            1 if args.guidance == 1 else 2
        )
        worked = compiling.compile_network(
            model,
            args.compile,
            batch,
            args.precision,
            processes.print,
        )
    if not processes.broadcast(all(processes.gather(worked))):
        compiling.run_eagerly()
        prepared.hows = [replace(how, compile_mode="") for how in prepared.hows]


def measure(args: Namespace, prepared: Namespace) -> None:
    """Print each part as it is measured and add it to metrics.json; at the end print the line of JSON. Raises OSError or ValueError,
    in one line."""
    data, file, found = prepared.data, prepared.home / "metrics.json", {}
    about = {
        "checkpoint": str(prepared.loaded.path),
        "checkpoint_sha256": prepared.loaded.sha256,
        "step": prepared.loaded.step,
        "trained_on": prepared.loaded.trained_on,
        "weights": prepared.weights,
        "dataset": data.name,
        "size": data.size,
        "train_digest": data.digest(),
        "test_digest": prepared.unseen.digest(),
    }
    print(
        f"{about['checkpoint']}, {about['step'] or 'unknown'} steps, {prepared.weights} weights; {data.name}",
        flush=True,
    )
    if about["trained_on"] != about["train_digest"]:
        print(
            "  these are not the images that it was trained on"
            if about["trained_on"]
            else "  whether it was trained on these images is not known",
            flush=True,
        )
    for part in sweep(args, prepared) if args.sweep else measurements(args, prepared):
        for name, value in part.items():
            found[name] = {**found.get(name, {}), **value}
        print("\n".join(table(part)), flush=True)
        write_metrics(file, about, part)
    print(f"  written to {file}")
    found.get("bits_per_dim", {}).get("bound", {}).pop(
        "terms", None
    )  # a thousand numbers are for the file alone
    print(json.dumps(finite(about | found)))


def measurements(args: Namespace, prepared: Namespace) -> Iterator[dict[str, Any]]:
    """What was asked for, part by part, as dictionaries in dictionaries."""
    model, data, unseen, root = prepared.model, prepared.data, prepared.unseen, args.data_root
    seed, size, known = (
        args.seeds[0],
        args.batch_size,
        {"seed": args.seeds[0], "device": prepared.model.device.type},
    )
    real = RealImages(data, unseen, root, args.references, size)
    if args.bound:
        terms = None if args.exact else args.terms
        yield {
            "bits_per_dim": {
                "bound": bits_per_dim.variational_bound(
                    model, unseen, args.bound, terms, seed, size
                )
                | known
            }
        }
    if args.num:
        how = prepared.hows[0]
        drawn = [
            sample_sets.read_samples(model, folder(args, prepared, how), args.num, seed)
            for seed in args.seeds
        ]
        asked = torch.arange(args.num) % model.unet.classes if model.unet.classes else None
        cost = drawn[0][1]
        about = sample_sets.plan_settings(how) | {
            "seeds": args.seeds,
            "device": model.device.type,
            "evaluations_each": cost.evaluations,
            "seconds_each": sum(each.seconds for _, each in drawn) / len(drawn),
            "batch_size": cost.batch_size,
        }
        for judge in prepared.judges:
            yield {
                "distances": {
                    judge.name: {"sampling": about}
                    | metrics.distances(
                        judge,
                        [images for images, _ in drawn],
                        real,
                        asked,
                    )
                }
            }
            audit, picture = metrics.memorization(judge, drawn[0][0][:AUDITED], real)
            file = prepared.home / "evaluation" / f"nearest-{judge.name}.png"
            write_image(file, picture)
            yield {"memorization": {judge.name: audit | {"picture": str(file)}}}
    if args.flow:  # the last, because it alone may fail
        yield {
            "bits_per_dim": {
                "flow": bits_per_dim.probability_flow(model, unseen, args.flow, seed, size) | known
            }
        }


def sweep(args: Namespace, prepared: Namespace) -> Iterator[dict[str, Any]]:
    """Distance and cost of each way to sample, as "sweep", and the plot."""
    judge, file = prepared.judges[0], prepared.home / "evaluation" / "sweep.png"
    drawn = (
        (
            sample_sets.plan_settings(how),
            [
                sample_sets.read_samples(
                    prepared.model, folder(args, prepared, how), args.num, seed
                )
                for seed in args.seeds
            ],
        )
        for how in prepared.hows
    )
    found = {
        "features": judge.name,
        "images": args.num,
        "seeds": args.seeds,
        "device": prepared.model.device.type,
        "plot": str(file),
    }
    found |= metrics.sweep(
        judge,
        drawn,
        RealImages(
            prepared.data, prepared.unseen, args.data_root, args.references, args.batch_size
        ),
    )
    write_plot(file, found)
    yield {"sweep": found}
