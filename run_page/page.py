"""A finished run as one HTML page, made from the files in its run directory.

    html = build_page(Path("runs/cifar10"))

The files are not trusted. If the file of a section is missing, damaged or has unexpected contents,
the section says so and names the command that makes it.
"""

import base64
import hashlib
import json
import reprlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy  # noqa: F401 (before torch: a signal that arrives while torch imports it is lost)

from checkpoints.run_dir import newest_checkpoint
from run_page.checkpoint_summary import CheckpointSummary, read_checkpoint_summary
from run_page.curves import Losses, Schedule, describe_schedule, read_losses
from run_page.metric_tables import Metrics, describe_metrics
from run_page.pictures import (
    Neighbours,
    NoisedImages,
    Previews,
    Samples,
    TrajectorySprite,
    noise_real_images,
    read_neighbours,
    read_previews,
    read_samples,
    read_sprite,
)
from run_page.sections import Missing, read_section

TEMPLATE = Path(__file__).with_name("page.html")
MAX_ITEMS = 20  # shown of a long list
MAX_CHARACTERS = 200  # shown of a setting
CONFIG_ROWS = {
    "preset": "preset",
    "hardware": "hardware",
    "device": "device",
    "precision": "precision",
    "torch": "torch",
    "lightning": "PyTorch Lightning",
    "python": "Python",
}


@dataclass(frozen=True)
class Page:
    """What page.html shows."""

    name: str
    folder: str  # the run directory, quoted for a shell
    command: str  # the training command; empty if it is not known
    about: list[tuple[str, str]]
    settings: dict[str, str]
    checkpoint: CheckpointSummary | Missing
    samples: Samples | Missing
    trajectory: TrajectorySprite | Missing
    forward: NoisedImages | Missing
    schedule: Schedule | Missing
    losses: Losses | Missing
    previews: Previews | Missing
    metrics: Metrics | Missing
    neighbours: Neighbours | Missing


def build_page(run_dir: Path) -> bytes:
    """Make the page of a run. Raises ValueError if `run_dir` is not a run directory."""
    return render(gather(run_dir))


def gather(run_dir: Path) -> Page:
    """Read everything that the page shows."""
    if not is_run_dir(run_dir):
        raise ValueError(
            f"{run_dir} is not a run directory: give one that train.py has written, such as "
            "runs/shapes"
        )
    config = read_json(run_dir / "config.json")
    measured = read_json(run_dir / "metrics.json")
    checkpoint = read_section(read_checkpoint_summary, run_dir)
    images, previews = run_dir / "images", run_dir / "samples"
    if isinstance(checkpoint, Missing):
        settings, step = {}, None
        forward = schedule = checkpoint
    else:
        settings, step = checkpoint.settings, checkpoint.step
        shape = settings["size"], settings["depth"]
        forward = read_section(noise_real_images, previews / "real.png", checkpoint.process, *shape)
        schedule = read_section(describe_schedule, checkpoint.process)
    class_names = settings.get("class_names", ())
    return Page(
        name=run_dir.resolve().name,
        folder=shlex.quote(str(run_dir)),
        command=training_command(config),
        about=describe_run(config, checkpoint),
        settings={name: shorten(value) for name, value in settings.items()},
        checkpoint=checkpoint,
        samples=read_section(read_samples, images / "samples.npz", class_names),
        trajectory=read_section(read_sprite, images / "trajectory.npz"),
        forward=forward,
        schedule=schedule,
        losses=read_section(read_losses, run_dir),
        previews=read_section(read_previews, previews),
        metrics=read_section(describe_metrics, measured, step),
        neighbours=read_section(read_neighbours, run_dir / "evaluation", measured),
    )


def is_run_dir(folder: Path) -> bool:
    """Whether a folder holds the settings or a checkpoint of a training run."""
    if not folder.is_dir():
        return False
    return (folder / "config.json").is_file() or newest_checkpoint(folder) is not None


def read_json(file: Path) -> dict[str, Any]:
    """Read the object in a JSON file; an empty one if there is none."""
    try:
        contents = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return contents if isinstance(contents, dict) else {}


def training_command(config: dict[str, Any]) -> str:
    """The command that trained the run, or an empty string if config.json does not hold it."""
    words = config.get("command")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return ""
    return shlex.join(["python", *words]) if words else ""


def describe_run(
    config: dict[str, Any], checkpoint: CheckpointSummary | Missing
) -> list[tuple[str, str]]:
    """Titles and values: dataset, network, training time, checkpoint, hardware, versions."""
    rows = []
    if not isinstance(checkpoint, Missing):
        hours, seconds = divmod(checkpoint.seconds, 3600)
        time = f"{seconds // 60} min {seconds % 60:02} s"
        if hours:
            time = f"{hours} h {time}"
        rows = [
            ("dataset", checkpoint.settings["dataset"]),
            ("network", f"{checkpoint.parameters:,} parameters"),
            ("training", f"{checkpoint.step:,} steps in {time}"),
            ("checkpoint", checkpoint.path),
        ]
    for name, title in CONFIG_ROWS.items():
        if isinstance(config.get(name), str):
            rows.append((title, config[name]))
    return rows


def shorten(value: Any) -> str:
    """A setting as text, truncated if it is long."""
    if isinstance(value, (tuple, list)):
        items = ", ".join(map(shorten, value[:MAX_ITEMS]))
        return f"{items}, .." if len(value) > MAX_ITEMS else items
    text = value if isinstance(value, str) else reprlib.repr(value)
    return text[:MAX_CHARACTERS]


def render(page: Page) -> bytes:
    """Fill in page.html.

    All values are escaped, and the page's security policy lets a browser run only its own script.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["sha256"] = script_hash
    environment.tests["missing"] = lambda section: isinstance(section, Missing)
    html = environment.get_template(TEMPLATE.name).render(vars(page))
    return html.encode("utf-8", "replace")  # a path may contain bytes that are not text


def script_hash(script: str) -> str:
    """The hash of a script in the form used in a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
