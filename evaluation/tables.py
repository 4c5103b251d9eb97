"""Format the results of an evaluation as lines of text.

    print("\\n".join(table(measured)))

The keys of `measured` are some of "bits_per_dim", "distances", "memorization", "neighbours",
"sweep" and "conditional", as in metrics.json.
"""

from itertools import pairwise
from typing import Any


def table(measured: dict[str, Any]) -> list[str]:
    """All lines of the table."""
    lines = []
    for name, lines_of in TABLES.items():
        if name in measured:
            lines += lines_of(measured[name])
    return lines


# ---- bits/dim ------------------------------------------------------------------------------------

UNIFORM = 8  # bits/dim of 256 equally likely levels


def bits_per_dim_lines(bits_per_dim: dict[str, Any]) -> list[str]:
    """Lines of "bits_per_dim"."""
    lines = []
    for name, title in (("bound", "variational bound"), ("flow", "probability flow")):
        if one := bits_per_dim.get(name):
            unpadded = ""
            if "mean_28x28" in one:
                unpadded = f"   {one['mean_28x28']:.3f} for 28x28"
            hint = "   above 8: see docs/evaluate.md" if one["mean"] > UNIFORM else ""
            lines.append(
                f"bits/dim, {title:18} {one['mean']:.3f} +- {one['standard_error']:.3f}   "
                f"{one['images']} unseen images{unpadded}{hint}"
            )
    return lines + term_lines(bits_per_dim.get("bound", {}).get("terms", []))


def term_lines(terms: list[float]) -> list[str]:
    """Lines of the bound: L_0, then L_1 .. L_{T-1} summed over ten ranges of t, then L_T."""
    if not terms:
        return []
    T = len(terms) - 1
    ends = sorted({0, 1, *(round(T * i / 10) for i in range(1, 11)), T + 1})
    lines = []
    for low, high in pairwise(ends):
        title = f"L_{low}" if high == low + 1 else f"L_{low} .. L_{high - 1}"
        lines.append(f"    {title:18} {sum(terms[low:high]):.4f}")
    return lines


# ---- distances -----------------------------------------------------------------------------------


def distances_lines(distances: dict[str, Any]) -> list[str]:
    """Lines of "distances"."""
    lines = []
    for features, one in distances.items():
        lines += [
            distances_title(features, one),
            f"  {'':42} {'samples':>10}   {'lowest .. highest':>22}   "
            f"{'real images':>11}   {'noise':>10}",
        ]
        lines += [distance_line(title, value, one["sets"]) for title, value in distance_rows(one)]
        if "to_train" in one:
            lines.append(
                "  real images are those of the other split: "
                f"{one['to_train']['floor_images']} unseen, "
                f"{one['to_test']['floor_images']} training images"
            )
        if "shares" in one:
            lines.append(class_line(one))
    return lines


def distances_title(features: str, one: dict[str, Any]) -> str:
    """Describe the samples and the feature extractor that compares them."""
    accuracy = ""
    if "accuracy" in one:
        accuracy = f" (right on {100 * one['accuracy']:.1f}% of the unseen images)"
    if "sampling" in one:
        sampling = one["sampling"]
        guidance = f", guidance {sampling['guidance']:g}" if sampling["guidance"] != 1 else ""
        samples = (
            f"{one['sets']} x {one['images']} samples by {sampling['sampler']}, "
            f"{sampling['steps']} steps{guidance}"
        )
    else:
        samples = f"{one['images']} images of {one['samples']}"
    return f"{samples}; features of {features}{accuracy}"


def distance_line(title: str, value: dict[str, float], sets: int) -> str:
    """Format one distance: mean, range if there are several sets, floor and ceiling."""
    between = f"{value['lowest']:.4f} .. {value['highest']:.4f}" if sets > 1 else ""
    line = f"  {title:42} {value['mean']:>10.4f}   {between:>22}"
    if "floor" in value:
        line += f"   {value['floor']:>11.4f}"
    elif "ceiling" in value:
        line += 14 * " "
    if "ceiling" in value:
        line += f"   {value['ceiling']:>10.4f}"
    return line


def class_line(one: dict[str, Any]) -> str:
    """Share of each class among the samples, as classified, and among the real images."""
    shares = []
    for name, share, real in zip(one["class_names"], one["shares"], one["real_shares"]):
        shares.append(f"{name} {100 * share:.0f}% ({100 * real:.0f})")
    more = ", .." if len(shares) > 20 else ""
    return f"  classes (among real images): {', '.join(shares[:20])}{more}"


def distance_rows(one: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Title and value of everything measured with one feature extractor.

    A value has "mean", "lowest" and "highest" over the sets of samples. If they are known, it also
    has "floor", for real images, and "ceiling", for noise.
    """
    titles = {
        "frechet": "FID" if one["published_weights"] else "Frechet distance",
        "kernel": "KID" if one["published_weights"] else "kernel distance",
        "precision": "precision",
        "recall": "recall",
    }
    rows = []
    compared = {
        "to_train": "training images",
        "to_test": "unseen images",
        "to_reference": "reference images",
    }
    for split in [split for split in compared if split in one]:
        images_of = compared[split]
        for name, title in titles.items():
            manifold = name in ("precision", "recall")
            count = one[split]["manifold_images" if manifold else "images"]
            preposition = "against" if manifold else "to"
            rows.append((f"{title} {preposition} {count} {images_of}", one[split][name]))
        if fewer := one[split].get("fewer"):
            title = f"  {titles['frechet']} of {fewer['images']} samples to the same images"
            rows.append((title, fewer["frechet"] | {"floor": one[split]["frechet"]["floor"]}))
    if "inception_score" in one:
        rows.append(("Inception score", one["inception_score"]))
    if "as_asked" in one:
        rows.append(("share of the requested class", one["as_asked"]))
    return rows


# ---- memorization and sweeps ---------------------------------------------------------------------


def memorization_lines(memorization: dict[str, Any]) -> list[str]:
    """Lines of "memorization"."""
    lines = []
    for features, one in memorization.items():
        lines += [
            f"memorization, {one['images']} samples against {one['train_images']} training images",
            audit_line("pixels", one["pixels"]),
            audit_line(f"features of {features}", one["features"]),
            f"  the eight samples most like a training image, as a picture: {one['picture']}",
        ]
    return lines


def neighbours_lines(neighbours: dict[str, Any]) -> list[str]:
    """Lines of "neighbours": the comparison of samples with a reference set."""
    lines = []
    for features, one in neighbours.items():
        title = f"nearest neighbours, {one['images']} samples among {one['reference_images']}"
        lines.append(f"{title} reference images")
        for name, audit in (
            ("pixels", one["pixels"]),
            (f"features of {features}", one["features"]),
        ):
            lines.append(
                f"  in {name:31} distance to the nearest reference image / the same between "
                f"reference images {audit['ratio']:.3f}; equal {100 * audit['equal']:.1f}%, "
                f"near-duplicates of other samples {100 * audit['duplicates']:.1f}%"
            )
        picture = one["picture"]
        lines.append(f"  the eight samples nearest to a reference image, as a picture: {picture}")
    return lines


def audit_line(title: str, audit: dict[str, float]) -> str:
    """One audit, in pixels or in features."""
    return (
        f"  in {title:31} distance to training images / to unseen images {audit['ratio']:.3f}; "
        f"copies {100 * audit['copies']:.1f}%, near-duplicates of other samples "
        f"{100 * audit['duplicates']:.1f}% (for real images 1% and 0%)"
    )


def sweep_lines(sweep: dict[str, Any]) -> list[str]:
    """Lines of "sweep": a table in Markdown."""
    sets = len(sweep["seeds"])
    heading = "| sampler | steps | evaluations | batch | ms per image | distance |"
    rule = "|---|---|---|---|---|---|"
    if sets > 1:
        heading += " lowest .. highest |"
        rule += "---|"
    return [
        f"Frechet distance in features of {sweep['features']}, {sets} x {sweep['images']} samples "
        f"to {sweep['train_images']} training images",
        heading,
        rule,
        *(sweep_line(row, sets) for row in sweep["rows"]),
        f"for {sweep['floor_images']} unseen images the distance is {sweep['floor']:.2f}, "
        f"for noise {sweep['ceiling']:.2f}",
        f"  the plot is {sweep['plot']}",
    ]


def sweep_line(row: dict[str, Any], sets: int) -> str:
    """Distance and cost of one sampling plan."""
    title = row["sampler"] + (f", {row['variance']} variance" if row["variance"] else "")
    distance = row["frechet"]
    line = (
        f"| {title} | {row['steps']} | {row['evaluations']:g} | {row['batch_size']} | "
        f"{1000 * row['seconds']:.1f} | {distance['mean']:.2f} |"
    )
    if sets > 1:
        line += f" {distance['lowest']:.2f} .. {distance['highest']:.2f} |"
    return line


# ---- image-conditional models --------------------------------------------------------------------


def conditional_lines(conditional: dict[str, Any]) -> list[str]:
    """Lines of "conditional": how close samples are to the originals."""
    perceptual = "perceptual" in conditional
    lines = [
        conditional_title(conditional),
        f"  {'':24} {'PSNR, dB':>9}" + (f"   {'perceptual distance':>19}" if perceptual else ""),
    ]
    for title, psnr, distance in conditional_rows(conditional):
        line = f"  {title:24} {psnr:>9.2f}"
        lines.append(line if distance is None else f"{line}   {distance:>19.4f}")
    lines.append(
        f"  standard deviation of a pixel between samples: {conditional['spread']:.1f} of 255"
    )
    lines.append(f"  condition, samples, their mean and the original: {conditional['picture']}")
    return lines


def conditional_title(conditional: dict[str, Any]) -> str:
    """Describe the unseen images, the condition and the samples."""
    sampling = conditional["sampling"]
    return (
        f"{conditional['images']} unseen images, {conditional['condition']}; "
        f"{conditional['samples_each']} samples each by {sampling['sampler']}, "
        f"{sampling['steps']} steps"
    )


def conditional_rows(conditional: dict[str, Any]) -> list[tuple[str, float, float | None]]:
    """Title, PSNR in dB and perceptual distance, if measured, of the condition and of samples."""
    enlarged = conditional["condition"].startswith("downscale")
    titles = {
        "condition": "bicubic interpolation" if enlarged else "the condition",
        "one_sample": "one sample",
        "mean_sample": f"mean of {conditional['samples_each']} samples",
    }
    psnr, perceptual = conditional["psnr"], conditional.get("perceptual", {})
    return [
        (title, psnr[name], perceptual.get(name)) for name, title in titles.items() if name in psnr
    ]


TABLES = {
    "conditional": conditional_lines,
    "bits_per_dim": bits_per_dim_lines,
    "distances": distances_lines,
    "memorization": memorization_lines,
    "neighbours": neighbours_lines,
    "sweep": sweep_lines,
}
