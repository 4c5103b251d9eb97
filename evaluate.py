"""Measure a trained model: bits/dim of unseen images, distances of its samples from real ones, and whether they are copies.

    python evaluate.py --ckpt runs/mnist                                         # all of it, with what suits the machine
    python evaluate.py --ckpt runs/mnist --num 10000 --seeds 0                   # 10,000 samples instead of three sets
    python evaluate.py --ckpt runs/cifar10 --features inception --num 50000      # FID, KID, IS, precision and recall
    python evaluate.py --ckpt runs/mnist --num 0 --flow 50                       # bits/dim alone, and the probability flow's
    python evaluate.py --ckpt runs/mnist --sweep sampler,steps                   # a table and a plot
    python evaluate.py --ckpt runs/mnist --doctor                                # what looks wrong in a run

Prints a table and one line of JSON, and adds that to metrics.json in the run directory, or beside the file that was given. The
samples are kept there, in evaluation/: stopped and run again, it goes on.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from Arguments import names, real, some_numbers, whole
from Signals import Stop

SAMPLERS = ("ddpm", "ddim", "heun", "dpm++", "unipc")
SWEPT_STEPS = (5, 10, 20, 50)
AUDITED = 1000  # samples that are compared with every training image


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, allow_abbrev=False, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("what").add_argument
    add("--ckpt", type=Path, required=True, metavar="PATH", help="a checkpoint, or a run directory for its newest")
    add("--weights", choices=("ema", "raw"), default="ema", help="the averaged weights or those of the last step (ema)")
    add("--dataset", metavar="NAME", help="the real images: a name, a folder or an .npz file (that of the training)")
    add("--data-root", default="data", metavar="DIR", help="where datasets are kept, and features and classifiers of them (data)")
    add("--doctor", action="store_true", help="instead: read the run directory and name likely trouble")
    add("--sweep", type=names("sampler", "steps"), metavar="WHAT",
        help="instead: distance for each of several samplers, numbers of steps, or (sampler,steps) both")
    add = parser.add_argument_group("bits/dim").add_argument
    add("--bound", type=whole(0), metavar="N", help="unseen images (1000, or all)")
    add("--terms", type=whole(1), default=16, metavar="K", help="terms of the bound drawn for each image, besides L_0 and L_T (16)")
    add("--exact", action="store_true", help="all T terms of the bound for each image, instead of K")
    add("--flow", type=whole(0), default=0, metavar="N", help="unseen images for the probability flow's likelihood (0)")
    add = parser.add_argument_group("samples").add_argument
    add("--num", type=whole(0), metavar="N", help="samples in each set (50000; 1000 on a CPU; 0: none)")
    add("--seeds", type=some_numbers(0), default=(0, 1, 2), metavar="N,..", help="one set for each; the first is also bits/dim's (0,1,2)")
    add("--sampler", type=names(*SAMPLERS), metavar="NAME", help=f"{', '.join(SAMPLERS)} (unipc; --sweep sampler: all)")
    add("--steps", type=some_numbers(1), metavar="N", help="steps to t = 0 (20, heun 10, ddpm all T; "
        f"--sweep steps: {','.join(map(str, SWEPT_STEPS))})")
    add("--grid", choices=("uniform", "quadratic", "log-snr", "edm"), default="uniform", help="at which t the steps are (uniform)")
    add("--eta", type=real(0, 1), metavar="X", help="noise of ddim (0)")
    add("--variance", choices=("large", "small", "learned"), help="of ddpm (that of the model)")
    add("--guidance", type=real(0, 1000), default=1.0, metavar="W",
        help="how strongly a class is asked for; sample i is of class i mod K (1)")
    add = parser.add_argument_group("distances").add_argument
    add("--features", type=names("classifier", "efficientnet-lite0", "inception"), metavar="NAME,..",
        help="of which network: a classifier of the dataset, trained once; efficientnet-lite0; inception, for FID and KID "
        "(classifier, or efficientnet-lite0 where there are no labels)")
    add("--inception-weights", type=Path, metavar="FILE", help="those of torch-fidelity (downloaded into --data-root)")
    add("--references", type=whole(4), metavar="N", help="real images of each split, drawn once and for all (all)")
    add = parser.add_argument_group("machine").add_argument
    add("--batch-size", type=whole(1), default=100, metavar="N", help="images at once (100)")
    add("--precision", choices=("auto", "32", "bf16"), default="auto", help="of sampling; auto: bf16 where the hardware has it (auto)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(auto)")
    add("--devices", type=whole(1), metavar="N", help="processes a node, which share the sampling (those of srun or torchrun, else 1)")
    add("--num-nodes", type=whole(1), metavar="N", help="nodes (those of srun or torchrun, else 1)")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)  # before torch is imported: a typing error costs no seconds
    if wrong := contradiction(args):
        parser.error(wrong)
    if args.doctor:
        import Doctor
        try:
            findings = Doctor.examine(args.ckpt, args.dataset, args.data_root)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        print(Doctor.report(findings))
        return 0

    import torch

    import Devices
    try:
        device = Devices.pick_device(args.device)
        args.precision = Devices.pick_precision(device, args.precision)
        processes = Devices.launch(device, args.devices, args.num_nodes)
    except ValueError as error:
        parser.error(str(error))
    first, refusal, prepared, path = processes.global_rank == 0, "", None, args.ckpt
    args.num = args.num if args.num is not None else 50_000 if device == "cuda" else 1000
    for mine in (first, not first):  # the first alone finds the checkpoint, and makes what is missing
        if mine and not refusal:
            try:
                prepared = prepare(args, path, processes)
            except (OSError, ValueError) as error:
                refusal = str(error)
        found = next(filter(None, Devices.gather(processes, refusal)), "")
        refusal, path = processes.broadcast((found, prepared.model.origin["checkpoint"] if prepared else path))
    if refusal or not prepared:
        Devices.part(processes)
        parser.error(refusal) if first else sys.exit(Devices.own_status(2))
    try:
        found = measure(args, prepared, processes)
        Devices.part(processes)
        if first:
            finish(args, prepared, found)
    except (torch.OutOfMemoryError, MemoryError):
        print(f"{parser.prog}: error: out of memory: choose a smaller --batch-size than {args.batch_size}", file=sys.stderr)
        return Devices.desert(processes, 2)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return Devices.desert(processes, 2)
    return 0


def contradiction(args: argparse.Namespace) -> str:
    """What is wrong with flags that do not go together, in one line, or nothing."""
    swept = args.sweep or []
    if args.doctor and swept:
        return "--doctor and --sweep are different things to do: choose one"
    for flag, name, given in (("--sampler", "sampler", args.sampler), ("--steps", "steps", args.steps)):
        if given and len(given) > 1 and name not in swept:
            return f"{flag} with more than one value needs --sweep {name}"
    if not swept and not args.doctor and args.bound == 0 and args.num == 0 and not args.flow:
        return "there is nothing to measure: give --bound, --flow or --num"
    if swept and args.num == 0:
        return "--sweep measures samples: leave out --num 0"
    if 1 in (args.bound, args.flow):
        return "one image has no standard error: give 2 or more"
    if args.num in (1, 2, 3):
        return f"--num {args.num} is no set to compare: give 4 or more"
    for flag, value, name in (("--eta", args.eta, "ddim"), ("--variance", args.variance, "ddpm")):
        if value is not None and name not in (args.sampler or (SAMPLERS if "sampler" in swept else ())):
            return f"{flag} is that of {name}: add --sampler {name}"
    if args.inception_weights and "inception" not in (args.features or ()):
        return "--inception-weights are for --features inception"
    if swept and args.features and len(args.features) > 1:
        return "--sweep takes one kind of --features"
    return ""


def prepare(args: argparse.Namespace, path: Any, processes: Any) -> argparse.Namespace:
    """The model, the real images, the networks that judge, how samples are drawn: with all that is wrong known before the first
    measurement. Raises ValueError or OSError, in one line."""
    import Checkpoint
    import Features
    import Samples
    from Dataset import DiffSet
    model = Checkpoint.load_model(path, processes.device, args.weights == "ema")
    home = args.ckpt if args.ckpt.is_dir() else args.ckpt.parent
    samplers = args.sampler or (SAMPLERS if "sampler" in (args.sweep or ()) else (None,))
    steps = args.steps or ([count for count in SWEPT_STEPS if count <= model.T] if "steps" in (args.sweep or ()) else [None])
    hows = [Samples.plan(model, **({"sampler": sampler} if sampler else {}), steps=count, grid=args.grid, variance=args.variance,
                         eta=args.eta or 0.0, guidance=args.guidance, precision=args.precision) for sampler in samplers for count in steps]
    prepared = argparse.Namespace(model=model, home=home, hows=hows, judges=[], labels=None)
    if processes.global_rank:
        return prepared                                                          # the others only draw samples
    name = args.dataset or model.hparams["dataset"]
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


def samples(args: argparse.Namespace, prepared: argparse.Namespace, processes: Any, how: Any) -> list[Any]:
    """For each seed the images and what they cost, drawn by all processes; for the first alone, the others get nothing."""
    import Devices
    import Samples
    model = prepared.model
    folder = prepared.home / "evaluation" / Samples.key(how, model.origin["checkpoint_sha256"], args.weights, model.device.type)
    for seed in args.seeds:
        Samples.generate(model, how, folder, args.num, seed, args.batch_size, processes.global_rank, processes.world_size,
                         f"{how.sampler}, {how.steps} steps, seed {seed}")
    Devices.gather(processes, True)                                              # all files are there
    return [Samples.read(model, folder, args.num, seed) for seed in args.seeds] if processes.global_rank == 0 else []


def measure(args: argparse.Namespace, prepared: argparse.Namespace, processes: Any) -> dict[str, Any]:
    """What was asked for, as a dictionary; an empty one for all processes but the first."""
    import torch

    import Metrics
    model, first, found = prepared.model, processes.global_rank == 0, {}
    if args.sweep:
        import Sweep
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
        write_picture(file, picture)
        found.setdefault("memorization", {})[judge.name] = audit | {"picture": str(file)}
    return found


def finish(args: argparse.Namespace, prepared: argparse.Namespace, found: dict[str, Any]) -> None:
    """Print the table and the line, and add them to metrics.json. Raises OSError, in one line."""
    import Results
    import Sweep
    about = {**prepared.model.origin, "weights": args.weights, "dataset": prepared.data.name, "size": prepared.data.size,
             "train_digest": prepared.data.digest(), "test_digest": prepared.unseen.digest()}
    print("\n".join([f"{about['checkpoint']}, {about['step']} steps, {args.weights} weights; {about['dataset']}", *Results.lines(found)]))
    if "sweep" in found:
        Sweep.plot(found["sweep"], prepared.home / "evaluation" / "sweep.png")
        print(f"  the plot is {prepared.home / 'evaluation' / 'sweep.png'}")
    Results.write(prepared.home / "metrics.json", about, found)
    print(f"  written to {prepared.home / 'metrics.json'}")
    found.get("bits_per_dim", {}).get("bound", {}).pop("terms", None)            # a thousand numbers are for the file alone
    print(json.dumps(about | found))


def write_picture(path: Path, picture: Any) -> None:
    """uint8 (C,H,W) as a PNG, three times as large."""
    from PIL import Image

    from CompleteFile import complete_file
    image = Image.fromarray(picture.permute(1, 2, 0).numpy().squeeze())
    with complete_file(path) as temporary:
        image.resize((3 * image.width, 3 * image.height), Image.Resampling.NEAREST).save(temporary)


if __name__ == "__main__":
    Stop().arm()  # a signal ends it at once; run again, it goes on
    sys.exit(main())
