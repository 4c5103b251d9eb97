"""What was measured, for people and for programs: lines of a table, pictures, a plot, and metrics.json.

    print("\\n".join(lines(found)))
    write("runs/mnist/metrics.json", about, found)

`found` has the parts "bits_per_dim", "distances", "memorization" and "sweep", as far as they were measured.
"""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from image_data.grids import enlarge, write_png
from runtime.atomic_file import complete_file

SAME = ("checkpoint_sha256", "weights", "dataset", "size", "train_digest", "test_digest")
GROWING = (
    "bits_per_dim",
    "distances",
    "memorization",
)  # parts to which a later measurement of the same model adds


def write(file: Path, about: dict[str, Any], found: dict[str, Any]) -> None:
    """Add `found` to what the file knows `about` the same model and the same images (`SAME`). What it knows of others is kept under
    "earlier". What is not finite becomes null. Raises OSError, in one line."""
    try:
        known = json.loads(file.read_text())
        known = known if isinstance(known, dict) else {}
    except (OSError, ValueError):  # not there yet, or no JSON
        known = {}
    before = known.pop("earlier", [])
    records = [
        record
        for record in [known, *(before if isinstance(before, list) else [])]
        if isinstance(record, dict) and record
    ]
    same = [record for record in records if all(record.get(name) == about[name] for name in SAME)]
    kept = same[0] if same else {}
    merged = {
        part: {**kept[part], **value}
        if part in GROWING and isinstance(kept.get(part), dict)
        else value
        for part, value in found.items()
    }
    earlier = [record for record in records if record not in same]
    try:
        with complete_file(file) as temporary:
            temporary.write_text(
                json.dumps(
                    finite({**kept, **about, **merged} | ({"earlier": earlier} if earlier else {})),
                    allow_nan=False,
                )
                + "\n"
            )
    except OSError as error:
        raise OSError(
            f"cannot write {file} ({error.strerror}): make room, or give a --ckpt elsewhere"
        ) from None


def finite(value: Any) -> Any:
    """The same dictionaries and lists, with None for every number that is not finite: JSON has none of them."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_picture(file: Path, picture: Tensor) -> None:
    """uint8 (C,H,W) as a PNG, three times as large. Raises OSError."""
    write_png(file, enlarge(picture.permute(1, 2, 0).numpy(), 3))


def write_plot(file: Path, found: dict[str, Any]) -> None:
    """Of a sweep: distance against evaluations of the network, and against seconds, side by side as a PNG. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, over, title in zip(
        figure.subplots(1, 2, sharey=True),
        ("evaluations", "seconds"),
        ("evaluations of the network for an image", "seconds for an image"),
    ):
        for name in dict.fromkeys(row["sampler"] for row in found["rows"]):
            rows = sorted(
                (row for row in found["rows"] if row["sampler"] == name), key=lambda row: row[over]
            )
            axes.plot(
                [row[over] for row in rows],
                [row["frechet"]["mean"] for row in rows],
                marker="o",
                label=name,
            )
            axes.fill_between(
                [row[over] for row in rows],
                [row["frechet"]["lowest"] for row in rows],
                [row["frechet"]["highest"] for row in rows],
                alpha=0.2,
            )
        axes.axhline(found["floor"], color="gray", linestyle="--", label="real images")
        axes.set(xscale="log", yscale="log", xlabel=title)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"Frechet distance, {found['features']}")
    figure.axes[1].legend()
    with complete_file(file) as temporary:
        figure.savefig(temporary, dpi=120)


# ---- lines of the table ------------------------------------------------------------------------------------------------


def lines(found: dict[str, Any]) -> list[str]:
    """The table, line by line, of the parts of `found` that are there."""
    return [line for part, show in SHOWN.items() if part in found for line in show(found[part])]


def of_bits(found: dict[str, Any]) -> list[str]:
    """Lines of "bits_per_dim"."""
    shown = []
    for name, title in (("bound", "variational bound"), ("flow", "probability flow")):
        if one := found.get(name):
            own = f"   {one['mean_28x28']:.3f} for each of 28x28" if "mean_28x28" in one else ""
            shown.append(
                f"bits/dim, {title:18} {one['mean']:.3f} +- {one['standard_error']:.3f}   {one['images']} unseen images{own}"
            )
    if terms := found.get("bound", {}).get("terms"):
        T = len(terms) - 1
        ends = sorted({0, 1, *(round(T * i / 10) for i in range(1, 11)), T + 1})
        shown += [
            f"    {f'L_{low}' if high == low + 1 else f'L_{low} .. L_{high - 1}':18} {sum(terms[low:high]):.4f}"
            for low, high in pairwise(ends)
        ]
    return shown


def of_distances(found: dict[str, Any]) -> list[str]:
    """Lines of "distances"."""
    shown = []
    for features, one in found.items():
        how = one["sampling"]
        own = (
            f" (right on {100 * one['accuracy']:.1f}% of the unseen images)"
            if "accuracy" in one
            else ""
        )
        guided = f", guidance {how['guidance']:g}" if how["guidance"] != 1 else ""
        shown += [
            f"{one['sets']} x {one['images']} samples by {how['sampler']}, {how['steps']} steps{guided}; "
            f"features of {features}{own}",
            f"  {'':42} {'samples':>10}   {'lowest .. highest':>22}   {'real images':>11}   {'noise':>10}",
        ]
        for title, value in distance_rows(one):
            between = f"{value['lowest']:.4f} .. {value['highest']:.4f}" if one["sets"] > 1 else ""
            ends = "".join(
                f"   {value[end]:>{width}.4f}"
                for end, width in (("floor", 11), ("ceiling", 10))
                if end in value
            )
            shown.append(f"  {title:42} {value['mean']:>10.4f}   {between:>22}{ends}")
        shown.append(
            f"  real images are those of the other split: {one['to_train']['floor_images']} unseen, "
            f"{one['to_test']['floor_images']} training images"
        )
        if "shares" in one:
            shares = [
                f"{name} {100 * share:.0f}% ({100 * real:.0f})"
                for name, share, real in zip(one["class_names"], one["shares"], one["real_shares"])
            ]
            shown.append(
                f"  classes (among real images): {', '.join(shares[:20])}{', ..' if len(shares) > 20 else ''}"
            )
    return shown


def distance_rows(one: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """What was measured in the features of one network, each with its title: "mean", "lowest" and "highest" of the sets of samples;
    "floor", what real images have, and "ceiling", what noise has, where they are known."""
    frechet, kernel = (
        ("FID", "KID") if one["published_weights"] else ("Frechet distance", "kernel distance")
    )
    titles = {"frechet": frechet, "kernel": kernel, "precision": "precision", "recall": "recall"}
    rows = []
    for to, word in (("to_train", "training images"), ("to_test", "unseen images")):
        for name, title in titles.items():
            images = one[to]["manifold_images" if name in ("precision", "recall") else "images"]
            rows.append((f"{title} to {images} {word}", one[to][name]))
        if fewer := one[to].get("fewer"):
            value = fewer["frechet"] | {"floor": one[to]["frechet"]["floor"]}
            rows.append((f"  {frechet} of {fewer['images']} samples to them", value))
    return rows + [
        (title, one[name])
        for name, title in (
            ("inception_score", "Inception score"),
            ("as_asked", "share of the class asked for"),
        )
        if name in one
    ]


def of_memorization(found: dict[str, Any]) -> list[str]:
    """Lines of "memorization"."""
    shown = []
    for features, one in found.items():
        shown.append(
            f"memorization, {one['images']} samples against {one['train_images']} training images"
        )
        shown += [
            f"  in {title:31} distance to training / to unseen images {part['ratio']:.3f}; copies {100 * part['copies']:.1f}%, "
            f"near-duplicates {100 * part['duplicates']:.1f}% (of real images: 1% and 0%)"
            for title, part in (
                ("pixels", one["pixels"]),
                (f"features of {features}", one["features"]),
            )
        ]
        shown.append(
            f"  the eight most like a training image, and those it is like: {one['picture']}"
        )
    return shown


def of_sweep(found: dict[str, Any]) -> list[str]:
    """Lines of "sweep"."""
    sets = len(found["seeds"])
    shown = [
        f"Frechet distance in features of {found['features']}, {sets} x {found['images']} samples to {found['train_images']} "
        "training images",
        "| sampler | steps | evaluations | batch | ms an image | distance |"
        + (" lowest .. highest |" if sets > 1 else ""),
        "|---|---|---|---|---|---|" + ("---|" if sets > 1 else ""),
    ]
    for row in found["rows"]:
        value = row["frechet"]
        title = row["sampler"] + (f", {row['variance']} variance" if row["variance"] else "")
        shown.append(
            f"| {title} | {row['steps']} | {row['evaluations']:g} | {row['batch_size']} | {1000 * row['seconds']:.1f} | "
            f"{value['mean']:.2f} |"
            + (f" {value['lowest']:.2f} .. {value['highest']:.2f} |" if sets > 1 else "")
        )
    return [
        *shown,
        f"{found['floor_images']} unseen images have {found['floor']:.2f}, noise {found['ceiling']:.2f}",
        f"  the plot is {found['plot']}",
    ]


SHOWN = {
    "bits_per_dim": of_bits,
    "distances": of_distances,
    "memorization": of_memorization,
    "sweep": of_sweep,
}
