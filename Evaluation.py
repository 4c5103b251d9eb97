"""What evaluate.py does with its flags: everything that is needed, then the measurements, then the words and files.

    prepared = prepare(args, "runs/mnist", processes)     # on every process; all refusals are here
    found = measure(args, prepared, processes)            # the samples are drawn by all, the rest is measured by the first
    finish(args, prepared, found)                         # the first alone
"""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

import Checkpoint
import Devices
import Features
import Metrics
import Results
import RunFolder
import Sampler
import Samples
import Sweep
from Dataset import DiffSet

AUDITED = 1000  # samples that are compared with every training image


def prepare(args: Namespace, path: Path, processes: Fabric) -> Namespace:
    """The model, the real images, the networks that judge, how samples are drawn: with all that is wrong known before the first
    measurement. Raises ValueError or OSError, in one line."""
    model = Checkpoint.load_model(path, processes.device, args.weights == "ema", args.ema_length)
    home, swept = args.ckpt if args.ckpt.is_dir() else args.ckpt.parent, args.sweep or ()
    samplers = args.sampler or (Sampler.SAMPLERS if "sampler" in swept else (None,))
    steps = args.steps or ([count for count in Sweep.STEPS if count <= model.T] if "steps" in swept else [None])
    hows = [Samples.plan(model, **({"sampler": sampler} if sampler else {}), steps=count, grid=args.grid, variance=args.variance,
                         eta=args.eta or 0.0, guidance=args.guidance, precision=args.precision) for sampler in samplers for count in steps]
    weights = args.weights if args.ema_length is None else f"ema of length {args.ema_length:g}"
    prepared = Namespace(model=model, weights=weights, home=home, hows=hows, judges=[])
    if processes.global_rank:
        return prepared                                                          # the others only draw samples
    name = args.dataset or RunFolder.settings(home).get("dataset") or model.hparams["dataset"]
    data, unseen = (DiffSet(train, name, args.data_root, model.unet.size) for train in (True, False))
    if unseen.depth != model.unet.depth:
        raise ValueError(f"{unseen.name} has {unseen.depth} channels, and the model {model.unet.depth}: "
                         "give the --dataset that it was trained on")
    if model.unet.classes and max(int(unseen.labels.max()), int(data.labels.max())) >= model.unet.classes:
        raise ValueError(f"{unseen.name} has the label {max(int(unseen.labels.max()), int(data.labels.max()))}, and the model knows "
                         f"{model.unet.classes} classes: give the --dataset that it was trained on")
    args.bound = min(1000, len(unseen)) if args.bound is None else args.bound
    for flag, count in (("--bound", args.bound), ("--flow", args.flow)):
        if count > len(unseen):
            raise ValueError(f"{flag} {count} is more than the {len(unseen)} unseen images of {unseen.name}")
    if min(len(data), len(unseen)) < 4:
        raise ValueError(f"{data.name} has {len(data)} images for training and {len(unseen)} unseen ones: 4 of each are the least")
    args.features = args.features or ["classifier" if len(data.classes) > 1 else "efficientnet-lite0"]
    if "classifier" in args.features and len(data.classes) < 2:
        raise ValueError(f"{data.name} has no labels, and a classifier needs some: give --features efficientnet-lite0")
    (home / "evaluation").mkdir(exist_ok=True)                                   # told now, not after the sampling
    (home / "evaluation" / ".writable").touch()
    (home / "evaluation" / ".writable").unlink(missing_ok=True)
    prepared.data, prepared.unseen = data, unseen
    if args.num:
        prepared.judges = [Features.judge(kind, data, unseen, args.data_root, processes.device, args.inception_weights)
                           for kind in args.features]
    for judge in prepared.judges:
        for split in (data, unseen):
            Features.reference(judge, split, args.data_root, args.references, args.batch_size)
    return prepared


def samples(args: Namespace, prepared: Namespace, processes: Fabric, how: Any) -> list[Any]:
    """For each seed the images and what they cost, drawn by all processes; for the first alone, the others get nothing."""
    model = prepared.model
    folder = prepared.home / "evaluation" / Samples.key(how, model.origin["checkpoint_sha256"], prepared.weights, model.device.type)
    for seed in args.seeds:
        Samples.generate(model, how, folder, args.num, seed, args.batch_size, processes.global_rank, processes.world_size,
                         f"{how.sampler}, {how.steps} steps, seed {seed}")
    Devices.gather(processes, True)                                              # all files are there
    return [Samples.read(model, folder, args.num, seed) for seed in args.seeds] if processes.global_rank == 0 else []


def measure(args: Namespace, prepared: Namespace, processes: Fabric) -> dict[str, Any]:
    """What was asked for, as a dictionary; an empty one for all processes but the first."""
    model, first, found = prepared.model, processes.global_rank == 0, {}
    if args.sweep:
        drawn = ((how, samples(args, prepared, processes, how)) for how in prepared.hows)
        if not first:
            return {"sweep": [None for _ in drawn]}
        judge = prepared.judges[0]
        about = {"features": judge.name, "images": args.num, "seeds": args.seeds, "device": model.device.type}
        return {"sweep": about | Sweep.table(judge, drawn, prepared.data, prepared.unseen, args.data_root, args.references,
                                             args.batch_size)}
    seed, size = args.seeds[0], args.batch_size
    bits, known = {}, {"seed": seed, "device": model.device.type}
    if first and args.bound:
        terms = None if args.exact else args.terms
        bits["bound"] = Metrics.bound(model, prepared.unseen, args.bound, terms, seed, size) | known
    if first and args.flow:
        bits["flow"] = Metrics.flow(model, prepared.unseen, args.flow, seed, size) | known
    found = {"bits_per_dim": bits} if bits else {}
    if not args.num:
        return found
    how = prepared.hows[0]
    drawn = samples(args, prepared, processes, how)
    if not first:
        return found
    asked = torch.arange(args.num) % model.unet.classes if model.unet.classes else None
    for judge in prepared.judges:
        about = vars(how) | {"seeds": args.seeds, "device": model.device.type, "evaluations_each": drawn[0][1]["evaluations"],
                             "seconds_each": sum(cost["seconds"] for _, cost in drawn) / len(drawn)}
        found.setdefault("distances", {})[judge.name] = {"sampling": about} | Metrics.distances(
            judge, [images for images, _ in drawn], prepared.data, prepared.unseen, args.data_root, args.references, asked, size)
        audit, picture = Metrics.memorization(judge, drawn[0][0][:AUDITED], prepared.data, prepared.unseen, args.data_root,
                                              args.references, size)
        file = prepared.home / "evaluation" / f"nearest-{judge.name}.png"
        Results.write_picture(file, picture)
        found.setdefault("memorization", {})[judge.name] = audit | {"picture": str(file)}
    return found


def finish(args: Namespace, prepared: Namespace, found: dict[str, Any]) -> None:
    """Print the table and the line, and add them to metrics.json. Raises OSError, in one line."""
    data, file = prepared.data, prepared.home / "metrics.json"
    about = {**prepared.model.origin, "weights": prepared.weights, "dataset": data.name, "size": data.size,
             "train_digest": data.digest(), "test_digest": prepared.unseen.digest()}
    print(f"{about['checkpoint']}, {about['step']} steps, {prepared.weights} weights; {data.name}")
    if about["trained_on"] != about["train_digest"]:
        print("  these are not the images that it was trained on")
    print("\n".join(Results.lines(found)))
    if "sweep" in found:
        Sweep.plot(found["sweep"], prepared.home / "evaluation" / "sweep.png")
        print(f"  the plot is {prepared.home / 'evaluation' / 'sweep.png'}")
    Results.write(file, about, found)
    print(f"  written to {file}")
    found.get("bits_per_dim", {}).get("bound", {}).pop("terms", None)            # a thousand numbers are for the file alone
    print(json.dumps(about | found))
