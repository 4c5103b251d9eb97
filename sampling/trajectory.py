"""Read and check a trajectory that Inference.py has written.

Letters in the shape columns: F frames, N images, H and W height and width, C channels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from image_data.npz_files import NpzError, is_image_array, read_npz


@dataclass(frozen=True)
class Trajectory:
    """The contents of trajectory.npz."""

    frames: np.ndarray  # uint8 (F,N,H,W,C): x_t
    times: np.ndarray  # integers (F,): the t of every frame
    predicted: np.ndarray | None  # like frames: the model's prediction of x_0; None without a model
    columns: int  # images in a row of the grids that Inference.py wrote; 0 for a square grid


def read_trajectory(path: Path) -> Trajectory:
    """Read a trajectory.npz. Raises ValueError with a one-line message."""
    try:
        arrays = read_npz(path, ("frames", "times"), ("predicted", "columns"))
    except FileNotFoundError:
        raise ValueError(
            f"no trajectory at {path}: give the trajectory.npz that Inference.py writes"
        ) from None
    except NpzError:
        raise ValueError(
            f"{path} is not a trajectory: give the trajectory.npz that Inference.py writes"
        ) from None
    frames, times, predicted = arrays["frames"], arrays["times"], arrays.get("predicted")
    if not is_image_array(frames, ndim=5) or times.shape != frames.shape[:1]:
        raise ValueError(
            f"{path} must hold frames uint8 (F,N,H,W,1 or 3) and times (F,), "
            f"not {frames.dtype} {frames.shape}, {times.shape}"
        )
    other = frames if predicted is None else predicted
    if times.dtype.kind not in "iu" or (other.dtype, other.shape) != (frames.dtype, frames.shape):
        raise ValueError(
            f"{path} must contain times of an integer type, not {times.dtype}, and predicted with "
            f"the type and shape of frames, not {other.dtype} {other.shape}"
        )
    return Trajectory(frames, times, predicted, read_columns(arrays.get("columns")))


def read_columns(columns: np.ndarray | None) -> int:
    """The number of columns, or 0 if the array is not a single positive integer."""
    if columns is None or columns.dtype.kind != "i" or columns.shape:
        return 0
    return max(0, int(columns))
