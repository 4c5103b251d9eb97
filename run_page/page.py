"""What a run's page shows, gathered from the files of its run directory.

    gather(Path("runs/cifar10"))       # {"name": .., "samples": {..}, "losses": {..}, ..}, as page.html wants it

The files are data from anywhere: what cannot be read or has unexpected contents is left out, and its part of the page says why.
"""

import json
import math
import re
import reprlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints import checkpoint as Checkpoint
from checkpoints import run_dir as RunFolder
from DiffusionModel import DiffusionModel
from evaluation import doctor, results
from run_page import pictures
from run_page.charts import Series, chart, number

POINTS = 300  # of a curve
ROWS = 12  # of a table of losses
SCHEDULE = (
    "T",
    "schedule",
    "beta_small",
    "beta_large",
    "betas",
    "zero_terminal_snr",
    "parameterization",
)


def gather(run_dir: Path) -> dict[str, Any]:
    """All that page.html shows; a part that is not there is {"refusal": why}. Raises ValueError, in one line, where `run_dir` is no run."""
    if not run_dir.is_dir() or not (
        (run_dir / "config.json").is_file() or RunFolder.newest(run_dir)
    ):
        raise ValueError(
            f"{run_dir} is no run directory: give one that train.py has written, such as runs/shapes"
        )
    config, measured, saved = (
        read_json(run_dir / "config.json"),
        read_json(run_dir / "metrics.json"),
        part(checkpoint, run_dir),
    )
    settings, typed, images = saved.get("settings", {}), config.get("command"), run_dir / "images"
    words = (
        typed if isinstance(typed, list) and all(isinstance(word, str) for word in typed) else []
    )
    found = {
        "samples": part(pictures.samples, images / "samples.npz", settings.get("class_names", ())),
        "trajectory": part(pictures.trajectory, images / "trajectory.npz"),
        "forward": saved
        if saved["refusal"]
        else part(
            pictures.noised,
            run_dir / "samples" / "real.png",
            saved["process"],
            settings["size"],
            settings["depth"],
        ),
        "schedule": saved if saved["refusal"] else part(schedule, saved["process"]),
        "losses": part(losses, run_dir),
        "previews": part(pictures.previews, run_dir / "samples"),
        "metrics": part(metrics, measured, saved),
        "neighbours": part(pictures.neighbours, run_dir / "evaluation", measured),
    }
    return found | {
        "name": run_dir.resolve().name,
        "folder": shlex.quote(str(run_dir)),
        "checkpoint": saved,
        "about": about(config, saved),
        "settings": {name: told(value) for name, value in settings.items()},
        "command": shlex.join(["python", *words]) if words else "",
    }


def part(make: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """What `make` gives; its "refusal" is a line where it cannot, else empty."""
    try:
        return {"refusal": ""} | make(*given)
    except (OSError, ValueError) as error:
        return {"refusal": " ".join(str(error).split())}
    except (
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
    ) as error:  # of a structure from anywhere
        return {"refusal": f"unexpected contents ({type(error).__name__})"}


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, an empty one where there is none."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def told(value: Any) -> str:
    """A setting in a few words: of long lists the beginning."""
    if isinstance(value, (tuple, list)):
        return ", ".join(map(told, value[:20])) + (", .." if len(value) > 20 else "")
    return (value if isinstance(value, str) else reprlib.repr(value))[:200]


def checkpoint(run_dir: Path) -> dict[str, Any]:
    """Of the newest sound checkpoint: .path, .step, .seconds, .parameters, its .settings, and the .process from x_0 to x_t, which is its
    schedule with the smallest network there is."""

    def described(found: dict[str, Any]) -> dict[str, Any]:
        schedule = {name: found["hyper_parameters"][name] for name in SCHEDULE}
        return {
            "path": str(found["path"]),
            "step": found["global_step"],
            "seconds": round(found["elapsed"]),
            "parameters": sum(weight.numel() for weight in found["ema"]["weights"].values()),
            "settings": found["course"] | found["hyper_parameters"],
            "process": DiffusionModel(**schedule, width=4, mults=(1,), attention=(), blocks=1),
        }

    def check(found: dict[str, Any]) -> None:
        described(found)

    return described(Checkpoint.first_sound(run_dir, check))


def about(config: dict[str, Any], saved: dict[str, Any]) -> list[tuple[str, str]]:
    """What it is, in rows."""
    rows = []
    if not saved["refusal"]:
        hours, seconds = divmod(saved["seconds"], 3600)
        rows += [
            ("dataset", saved["settings"]["dataset"]),
            ("network", f"{saved['parameters']:,} parameters"),
            (
                "training",
                f"{saved['step']:,} steps in {f'{hours} h ' if hours else ''}{seconds // 60} min {seconds % 60:02} s",
            ),
            ("checkpoint", saved["path"]),
        ]
    known = (
        ("preset", "preset"),
        ("hardware", "hardware"),
        ("device", "device"),
        ("precision", "precision"),
        ("torch", "torch"),
        ("lightning", "PyTorch Lightning"),
        ("python", "Python"),
    )
    return rows + [
        (title, config[name]) for name, title in known if isinstance(config.get(name), str)
    ]


def schedule(process: DiffusionModel) -> dict[str, Any]:
    """alpha_bar and log-SNR against t: two .charts, and .rows at tenths of T."""
    alpha_bar = process.schedule["alpha_bar"]  # (T+1,)
    log_snr = [
        math.log(a / (1 - a)) if 0 < a < 1 else math.inf if a else -math.inf for a in alpha_bar
    ]
    at, tenths = (
        sorted({round(process.T * i / parts) for i in range(parts + 1)}) for parts in (POINTS, 10)
    )
    return {
        "charts": [
            chart(
                "What remains of the image",
                "t",
                "alpha_bar",
                [("alpha_bar", at, [alpha_bar[t] for t in at])],
            ),
            chart("Signal by noise", "t", "log-SNR", [("log-SNR", at, [log_snr[t] for t in at])]),
        ],
        "rows": [(t, number(alpha_bar[t]), number(log_snr[t])) for t in tenths],
    }


def losses(run_dir: Path) -> dict[str, Any]:
    """The .charts of metrics.csv; the .rows of some validations; the .bins of t in the last one."""
    if not (run_dir / "metrics.csv").is_file():
        raise ValueError(f"there is no {run_dir / 'metrics.csv'}")
    rows = [row for row in doctor.read_rows(run_dir) if math.isfinite(row.get("step", math.nan))]

    def curve(name: str, title: str) -> Series:
        """Many points become the means of some."""
        points = np.array(
            [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
        ).reshape(-1, 2)
        groups = np.array_split(points, min(POINTS, len(points))) if len(points) else []
        return (
            title,
            [group[:, 0].mean() for group in groups],
            [group[:, 1].mean() for group in groups],
        )

    validated = [row for row in rows if math.isfinite(row.get("val_loss", math.nan))]
    last = validated[-1] if validated else {}
    bins = {
        name: (int(ends[1]), int(ends[2]))
        for name in last
        if (ends := re.fullmatch(r"val_loss_t(\d+)-(\d+)", name))
    }
    compared = [
        (
            f"step {row['step']:,.0f}",
            [(low + high) / 2 for low, high in bins.values()],
            [row.get(name, math.nan) for name in bins],
        )
        for row in (last, *validated[:-1][:1])
        if bins
    ]
    charts = [
        chart(
            "Loss",
            "steps",
            "loss",
            [curve("train_loss", "training"), curve("val_loss", "validation")],
            log=True,
        ),
        chart("Validation loss by t", "t", "loss", compared, log=True),
        chart("Bits/dim", "steps", "bits/dim", [curve("bits_per_dim", "bits/dim")]),
        chart(
            "Distance to real images",
            "steps",
            "distance",
            [curve("classifier_distance", "distance")],
        ),
    ]
    if not any(charts):
        raise ValueError("no loss is logged yet")
    few = [
        validated[round(i)] for i in np.linspace(0, len(validated) - 1, min(ROWS, len(validated)))
    ]
    return {
        "charts": [one for one in charts if one],
        "rows": [(f"{row['step']:,.0f}", number(row["val_loss"])) for row in few],
        "bins": [(f"{low} to {high}", number(last[name])) for name, (low, high) in bins.items()],
    }


def metrics(found: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """metrics.json of evaluate.py: .tables, each with its .title and .rows of name, value, lowest to highest, floor, ceiling; and
    .note, where it is not of the checkpoint that is shown."""

    def given(value: float | None) -> str:
        return "not finite" if value is None else number(value)

    tables = []
    for name, title in (("bound", "variational bound"), ("flow", "probability flow")):
        if one := found.get("bits_per_dim", {}).get(name):
            value = f"{given(one['mean'])} ± {given(one['standard_error'])}"
            tables.append(
                {
                    "title": f"Likelihood of {one['images']:,} unseen images",
                    "rows": [(f"bits/dim, {title}", value, "", "", "")],
                }
            )
    for features, one in found.get("distances", {}).items():
        how = one["sampling"]
        rows = [
            (
                title.strip(),
                given(value["mean"]),
                f"{given(value['lowest'])} to {given(value['highest'])}" if one["sets"] > 1 else "",
                *(given(value[end]) if end in value else "" for end in ("floor", "ceiling")),
            )
            for title, value in results.distance_rows(one)
        ]
        tables.append(
            {
                "title": f"{one['sets']} × {one['images']:,} samples by {how['sampler']}, {how['steps']} steps, in features of "
                f"{features}",
                "rows": rows,
            }
        )
    if not tables:
        raise ValueError("nothing is measured yet")
    step = found.get("step")
    return {
        "tables": tables,
        "note": f"Measured after step {step}, not {saved['step']}."
        if step != saved.get("step", step)
        else "",
    }
