"""Distance against cost: of the samples of several samplers and numbers of steps, as a table and a plot.

    found = table(judge, [(how, [(images, cost), ..]), ..], data, unseen, root)
    print("\\n".join(lines(found)))
    plot(found, "sweep.png")
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import Distances
import Features
from CompleteFile import complete_file
from Dataset import DiffSet
from Metrics import spread

STEPS = (5, 10, 20, 50)  # where nothing else is asked for


def table(judge: Any, drawn: Iterable[tuple[Any, list[Any]]], data: DiffSet, unseen: DiffSet, root: str | Path,
          references: int | None = None, batch_size: int = 100) -> dict[str, Any]:
    """The Frechet distance to the training images for each way to sample, over its sets, (uint8 (N,C,H,W), cost) each; what one image
    took; and that of as many unseen images (floor) and of as many of noise (ceiling)."""
    real = Features.reference(judge, data, root, references)
    of_real, rows, shape = Distances.statistics(real), [], torch.Size()

    def distance(images: torch.Tensor) -> float:
        return Distances.frechet(Distances.statistics(Features.seen(judge, images, "features", batch_size)[0]), of_real)

    for how, sets in drawn:
        each, shape = [distance(images) for images, _ in sets], sets[0][0].shape
        rows.append(vars(how) | {"evaluations": sets[0][1]["evaluations"], "seconds": sum(cost["seconds"] for _, cost in sets) / len(sets),
                                 "frechet": spread(each)})
    held_out = Features.reference(judge, unseen, root, references)[:shape[0]]
    return {"rows": rows, "train_images": len(real), "floor": Distances.frechet(Distances.statistics(held_out), of_real),
            "floor_images": len(held_out), "ceiling": distance(Distances.noise(shape[0], tuple(shape[1:])))}


def lines(found: dict[str, Any]) -> list[str]:
    sets = len(found["seeds"])
    shown = [f"Frechet distance in features of {found['features']}, {sets} x {found['images']} samples to {found['train_images']} "
             "training images",
             "| sampler | steps | evaluations | ms an image | distance |" + (" lowest .. highest |" if sets > 1 else ""),
             "|---|---|---|---|---|" + ("---|" if sets > 1 else "")]
    for row in found["rows"]:
        value = row["frechet"]
        title = row["sampler"] + (f", {row['variance']} variance" if row["variance"] else "")
        shown.append(f"| {title} | {row['steps']} | {row['evaluations']:g} | {1000 * row['seconds']:.1f} | {value['mean']:.2f} |"
                     + (f" {value['lowest']:.2f} .. {value['highest']:.2f} |" if sets > 1 else ""))
    return [*shown, f"{found['floor_images']} unseen images have {found['floor']:.2f}, noise {found['ceiling']:.2f}"]


def plot(found: dict[str, Any], file: Path) -> None:
    """Two pictures side by side, as a PNG: distance against evaluations of the network, and against seconds. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, over, title in zip(figure.subplots(1, 2, sharey=True), ("evaluations", "seconds"),
                                 ("evaluations of the network for an image", "seconds for an image")):
        for name in dict.fromkeys(row["sampler"] for row in found["rows"]):
            rows = sorted((row for row in found["rows"] if row["sampler"] == name), key=lambda row: row[over])
            axes.plot([row[over] for row in rows], [row["frechet"]["mean"] for row in rows], marker="o", label=name)
            axes.fill_between([row[over] for row in rows], [row["frechet"]["lowest"] for row in rows],
                              [row["frechet"]["highest"] for row in rows], alpha=0.2)
        axes.axhline(found["floor"], color="gray", linestyle="--", label="real images")
        axes.set(xscale="log", yscale="log", xlabel=title)
        axes.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel(f"Frechet distance, {found['features']}")
    figure.axes[1].legend()
    with complete_file(file) as temporary:
        figure.savefig(temporary, dpi=120)
