"""The files that Inference.py writes: grids of images, trajectory.npz and samples.npz."""

import re
from pathlib import Path

from image_data.grids import grid_scale, write_grid
from image_data.npz_files import write_npz
from sampling.generate import GeneratedImages, NoisingJob, SamplingJob


def check_writable(folder: Path) -> None:
    """Check, before sampling, that the folder can be created and written to. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".writable").touch()
    (folder / ".writable").unlink()


def write_images(folder: Path, job: SamplingJob | NoisingJob, images: GeneratedImages) -> None:
    """Write all files, and remove the grids of an earlier run. Raises OSError."""
    columns = 0
    if isinstance(job, SamplingJob):
        columns = job.layout.columns
        labels = job.layout.labels
        # Clusters are left out: they would be taken for classes of the dataset.
        arrays = {"arr_1": labels} if labels and job.model.settings.uses_labels else {}
        write_npz(folder / "samples.npz", arr_0=images.images, **arrays)
    write_trajectory(folder / "trajectory.npz", images, columns)
    written = set()
    for t in job.saved:
        written |= write_grids(folder, images, t, columns)
    for file in folder.glob("*.png"):
        if re.fullmatch(r"(x0_)?t\d{4,6}", file.stem) and file not in written:
            file.unlink()


def write_trajectory(file: Path, images: GeneratedImages, columns: int) -> None:
    """Write the frames in the order of decreasing t. At t = 0, x0_hat is the image itself."""
    times = sorted(images.frames, reverse=True)
    arrays = {"frames": [images.frames[t] for t in times], "times": times}
    if images.predicted:
        arrays["predicted"] = [images.predicted[t] for t in times]
    if columns:
        arrays["columns"] = columns
    write_npz(file, **arrays)


def write_grids(folder: Path, images: GeneratedImages, t: int, columns: int) -> set[Path]:
    """Write the grid of x_t and, if there is one, the grid of x0_hat. Returns their paths."""
    grids = {folder / f"t{t:04d}.png": images.frames[t]}
    if t in images.predicted:
        grids[folder / f"x0_t{t:04d}.png"] = images.predicted[t]
    for file, grid in grids.items():
        write_grid(file, grid, columns, grid_scale(grid, columns))
    return set(grids)


def summary(folder: Path, job: SamplingJob | NoisingJob, images: GeneratedImages) -> str:
    """A line about the files that were written, after the notes about the input images."""
    grids = ", ".join(f"t{t:04d}.png" for t in job.saved)
    line = f"{folder}: {grids}, trajectory.npz ({len(images.frames)} frames)"
    if isinstance(job, SamplingJob):
        total, shown = job.layout.total, len(job.layout.order)
        line += f", samples.npz ({total} images)"
        if total > shown:
            line += f"; grids and trajectory show the first {shown}"
        plan = job.plan
        if plan.guidance != 1:
            by = plan.guide.name if plan.guide else "the model without the class"
            line += f"; guidance {plan.guidance:g} away from {by}"
            if job.edit.mask is None:  # RePaint takes more evaluations
                line += f", {plan.evaluations} network evaluations per image"
        return "\n".join([*job.edit.notes, line])
    return line
