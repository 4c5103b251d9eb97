"""Measure a trained model: bits/dim on unseen images.

    python evaluate.py --ckpt runs/mnist                             # the variational bound, estimated on 1000 images
    python evaluate.py --ckpt runs/mnist --num 100 --exact           # all of its T terms
    python evaluate.py --ckpt runs/mnist --flow 50                   # and the likelihood of the probability flow, on 50 images

Prints a table and one line of JSON, and writes that as metrics.json (with --exact: and every term) into the run directory, or beside
the file that was given.
"""

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from Arguments import whole
from Signals import Stop


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, allow_abbrev=False, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("what").add_argument
    add("--ckpt", type=Path, required=True, metavar="PATH", help="a checkpoint, or a run directory for its newest")
    add("--weights", choices=("ema", "raw"), default="ema", help="the averaged weights or those of the last step (ema)")
    add("--dataset", metavar="NAME", help="whose unseen images: a name, a folder or an .npz file (that of the training)")
    add("--data-root", default="data", metavar="DIR", help="(data)")
    add = parser.add_argument_group("bits/dim").add_argument
    add("--num", type=whole(2), default=1000, metavar="N", help="unseen images, the first ones (1000)")
    add("--samples", type=whole(1), default=16, metavar="K", help="terms of the bound drawn for each image, besides L_0 and L_T (16)")
    add("--exact", action="store_true", help="all T terms of the bound for each image, instead of K")
    add("--flow", type=whole(0), default=0, metavar="N", help="of the images, for the probability flow's likelihood (0)")
    add("--seed", type=whole(0), default=0, metavar="N", help="the noise of image i depends on (seed, i) alone (0)")
    add = parser.add_argument_group("machine").add_argument
    add("--batch-size", type=whole(1), default=100, metavar="N", help="images at once (100)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(auto)")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)  # before torch is imported: a typing error costs no seconds

    import torch

    import Checkpoint
    import Devices
    from CompleteFile import complete_file
    from Dataset import DiffSet
    try:
        device = Devices.pick_device(args.device)
        model = Checkpoint.load_model(args.ckpt, device, args.weights == "ema")
        unseen = DiffSet(False, args.dataset or model.hparams["dataset"], args.data_root, model.unet.size)
        if unseen.depth != model.unet.depth:
            raise ValueError(f"{unseen.name} has {unseen.depth} channels, and the model {model.unet.depth}: "
                             "give the --dataset that it was trained on")
        if model.unet.classes and int(unseen.labels.max()) >= model.unet.classes:
            raise ValueError(f"{unseen.name} has the label {int(unseen.labels.max())}, and the model knows {model.unet.classes} classes: "
                             "give the --dataset that it was trained on")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    images = min(args.num, len(unseen))
    if images < 2 or args.flow == 1:
        parser.error("one image has no standard error: give 2 or more")
    if args.flow > images:
        parser.error(f"--flow {args.flow} is more than the {images} images: choose a larger --num")
    try:
        measured = {"bound": bound(model, unseen, images, args)} | ({"flow": flow(model, unseen, args)} if args.flow else {})
    except torch.OutOfMemoryError:
        parser.error(f"out of memory: choose a smaller --batch-size than {args.batch_size}")
    print(table(measured, unseen))
    metrics = {"checkpoint": str(args.ckpt), "weights": args.weights, "dataset": unseen.name, "split": "test",
               "images_sha256": unseen.digest(), "size": unseen.size, "seed": args.seed, "device": device, "bits_per_dim": measured}
    file = (args.ckpt if args.ckpt.is_dir() else args.ckpt.parent) / "metrics.json"
    try:
        with complete_file(file) as temporary:
            temporary.write_text(json.dumps(metrics) + "\n")
    except OSError as error:
        parser.error(f"cannot write {file} ({error.strerror})")
    print(f"  +- is one standard error of the mean; written to {file}")
    short = {name: {part: value for part, value in found.items() if part != "terms"} for name, found in measured.items()}
    print(json.dumps(metrics | {"bits_per_dim": short}))
    return 0


def batches(unseen: Any, count: int, size: int, device: Any, title: str) -> Any:
    """Numbers of the images, x_0 and labels of the first `count` unseen images, with a progress bar."""
    from tqdm import tqdm
    for first in tqdm(range(0, count, size), desc=title, unit=" batches", mininterval=0.5 if sys.stderr.isatty() else 60):
        indices = range(first, min(first + size, count))
        x_0 = unseen.images[indices.start:indices.stop].to(device).float() / 127.5 - 1
        yield indices, x_0, unseen.labels[indices.start:indices.stop].to(device)


def of_image(bits: Any, unseen: Any) -> dict[str, float]:
    """Mean over images with its standard error; for digits and garments also for each of their own 28x28 values, since the
    border that makes them 32x32 is black and tells nothing."""
    own = {"mean_28x28": bits.mean().item() * 32**2 / 28**2} if unseen.name in ("mnist", "fashionmnist") and unseen.size == 32 else {}
    return {"mean": bits.mean().item(), "standard_error": bits.std().item() / len(bits)**0.5, **own, "images": len(bits)}


def bound(model: Any, unseen: Any, count: int, args: argparse.Namespace) -> dict[str, Any]:
    """The variational bound in bits/dim: estimated, or with every term."""
    import torch

    import Likelihood
    from Sampler import Noise
    found = []
    for indices, x_0, y in batches(unseen, count, args.batch_size, model.device, "the variational bound"):
        noise = Noise(args.seed, indices, tuple(x_0.shape[1:]), model.device, Likelihood.NOISE)
        given = y if model.unet.classes else None
        if args.exact:
            found.append(Likelihood.bound(model, x_0, noise, given))
        else:
            place = torch.special.ndtr(Noise(args.seed, indices, (args.samples,), model.device, Likelihood.PLACE)())
            found.append(Likelihood.estimate(model, x_0, noise, place, given)[None])
    terms = torch.cat(found, dim=1).double().cpu()                               # (T+1,N) or (1,N)
    return of_image(terms.sum(0), unseen) | ({"terms": terms.mean(1).tolist()} if args.exact else {"samples": args.samples})


def flow(model: Any, unseen: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The probability flow's likelihood in bits/dim."""
    import torch

    import Likelihood
    from Sampler import Noise
    found = []
    for indices, x_0, y in batches(unseen, args.flow, args.batch_size, model.device, "the probability flow"):
        shape = tuple(x_0.shape[1:])
        place = torch.special.ndtr(Noise(args.seed, indices, shape, model.device, Likelihood.PLACE)())
        noise = Noise(args.seed, indices, shape, model.device, Likelihood.NOISE)
        found.append(Likelihood.flow(model, x_0, place, noise, y if model.unet.classes else None))
    return of_image(torch.cat(found).double().cpu(), unseen)


def table(measured: dict[str, Any], unseen: Any) -> str:
    lines = [f"bits/dim of {unseen.name}, {unseen.depth}x{unseen.size}x{unseen.size}, unseen images"]
    for name, title in (("bound", "variational bound"), ("flow", "probability flow")):
        if found := measured.get(name):
            own = f"   {found['mean_28x28']:.3f} for each of 28x28" if "mean_28x28" in found else ""
            lines.append(f"  {title:18} {found['mean']:.3f} +- {found['standard_error']:.3f}   {found['images']} images{own}")
    if terms := measured["bound"].get("terms"):
        T = len(terms) - 1
        ends = [0, 1, *(round(T * i / 10) for i in range(1, 11)), T + 1]
        lines.append("  of the bound:")
        lines += [f"    {f'L_{low}' if high == low + 1 else f'L_{low} .. L_{high - 1}':18} {sum(terms[low:high]):.4f}"
                  for low, high in pairwise(ends) if high > low]
    return "\n".join(lines)


if __name__ == "__main__":
    Stop().arm()  # a signal ends it at once; run again, it measures the same
    sys.exit(main())
