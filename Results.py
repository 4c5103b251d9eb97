"""What was measured, for people and for programs: lines of a table, pictures, and metrics.json.

    print("\\n".join(lines(found)))
    write("runs/mnist/metrics.json", about, found)

`found` has the parts "bits_per_dim", "distances", "memorization" and "sweep", as far as they were measured.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

import Sweep
from CompleteFile import complete_file

SAME = ("checkpoint_sha256", "weights", "dataset", "size", "train_digest", "test_digest")
GROWING = ("bits_per_dim", "distances", "memorization")  # parts to which a later measurement of the same model adds


def write(file: Path, about: dict[str, Any], found: dict[str, Any]) -> None:
    """Add `found` to what the file knows `about` the same model and the same images (`SAME`); a file about others is replaced. Raises
    OSError, in one line."""
    try:
        known = json.loads(file.read_text())
        kept = known if isinstance(known, dict) and all(known.get(name) == about[name] for name in SAME) else {}
    except (OSError, ValueError):  # not there yet, or no JSON
        kept = {}
    merged = {part: {**kept[part], **value} if part in GROWING and isinstance(kept.get(part), dict) else value
              for part, value in found.items()}
    try:
        with complete_file(file) as temporary:
            temporary.write_text(json.dumps({**kept, **about, **merged}, allow_nan=False) + "\n")
    except OSError as error:
        raise OSError(f"cannot write {file} ({error.strerror})") from None


def write_picture(file: Path, picture: Tensor) -> None:
    """uint8 (C,H,W) as a PNG, three times as large. Raises OSError."""
    image = Image.fromarray(picture.permute(1, 2, 0).numpy().squeeze())
    with complete_file(file) as temporary:
        image.resize((3 * image.width, 3 * image.height), Image.Resampling.NEAREST).save(temporary)


def lines(found: dict[str, Any]) -> list[str]:
    return [line for part, show in SHOWN.items() if part in found for line in show(found[part])]


def of_bits(found: dict[str, Any]) -> list[str]:
    shown = ["bits/dim of unseen images, mean and its standard error"]
    for name, title in (("bound", "variational bound"), ("flow", "probability flow")):
        if one := found.get(name):
            own = f"   {one['mean_28x28']:.3f} for each of 28x28" if "mean_28x28" in one else ""
            shown.append(f"  {title:18} {one['mean']:.3f} +- {one['standard_error']:.3f}   {one['images']} images{own}")
    if terms := found.get("bound", {}).get("terms"):
        T = len(terms) - 1
        ends = sorted({0, 1, *(round(T * i / 10) for i in range(1, 11)), T + 1})
        shown.append("  of the bound:")
        shown += [f"    {f'L_{low}' if high == low + 1 else f'L_{low} .. L_{high - 1}':18} {sum(terms[low:high]):.4f}"
                  for low, high in pairwise(ends)]
    return shown


def of_distances(found: dict[str, Any]) -> list[str]:
    shown = []
    for features, one in found.items():
        how = one["sampling"]
        own = f" (right on {100 * one['accuracy']:.1f}% of the unseen images)" if "accuracy" in one else ""
        guided = f", guidance {how['guidance']:g}" if how["guidance"] != 1 else ""
        shown += [f"{one['sets']} x {one['images']} samples by {how['sampler']}, {how['steps']} steps{guided}; "
                  f"features of {features}{own}",
                  f"  {'':42} {'samples':>10}   {'lowest .. highest':>22}   {'real images':>11}   {'noise':>10}"]
        titles = ({"frechet": "FID", "kernel": "KID"} if features == "inception"
                  else {"frechet": "Frechet distance", "kernel": "kernel distance"})
        rows = [(f"{titles.get(name, name)} to {one[to]['images']} {word}", one[to][name])
                for to, word in (("to_train", "training images"), ("to_test", "unseen images"))
                for name in ("frechet", "kernel", "precision", "recall")]
        rows += [(title, one[name]) for name, title in (
            ("inception_score", "Inception score"), ("as_asked", "share of the class asked for")) if name in one]
        for title, value in rows:
            between = f"{value['lowest']:.4f} .. {value['highest']:.4f}" if one["sets"] > 1 else ""
            ends = "".join(f"   {value[end]:>{width}.4f}" for end, width in (("floor", 11), ("ceiling", 10)) if end in value)
            shown.append(f"  {title:42} {value['mean']:>10.4f}   {between:>22}{ends}")
        shown.append(f"  real images are those of the other split: {one['to_train']['floor_images']} unseen, "
                     f"{one['to_test']['floor_images']} training images")
        if "shares" in one:
            shares = [f"{name} {100 * share:.0f}% ({100 * real:.0f})" for name, share, real in
                      zip(one["class_names"], one["shares"], one["real_shares"])]
            shown.append(f"  classes (among real images): {', '.join(shares[:20])}{', ..' if len(shares) > 20 else ''}")
    return shown


def of_memorization(found: dict[str, Any]) -> list[str]:
    shown = []
    for features, one in found.items():
        shown.append(f"memorization, {one['images']} samples against {one['train_images']} training images")
        shown += [f"  in {title:31} distance to training / to unseen images {part['ratio']:.3f}; copies {100 * part['copies']:.1f}%, "
                  f"near-duplicates {100 * part['duplicates']:.1f}% (real images: 1%)"
                  for title, part in (("pixels", one["pixels"]), (f"features of {features}", one["features"]))]
        shown.append(f"  the eight most like a training image, and those it is like: {one['picture']}")
    return shown


SHOWN = {"bits_per_dim": of_bits, "distances": of_distances, "memorization": of_memorization, "sweep": Sweep.lines}
