"""The trajectory that Inference.py writes, read and checked: what make_gif.py and report.py show of it.

Letters in the shape columns: F frames, N images, H and W height and width, C channels.
"""

from pathlib import Path

import numpy as np


def read(path: Path) -> dict[str, np.ndarray]:
    """frames uint8 (F,N,H,W,C), x_t at times (F,); predicted, like frames, x_0 as predicted from each, where a model has made them;
    columns (), how many images a row is to have, or 0. Raises ValueError with a one-line message."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {
                name: archive[name]
                for name in ("frames", "times", "predicted", "columns")
                if name in archive or name == "frames"
            }
        frames, times, predicted = (
            found["frames"],
            found["times"],
            found.get("predicted", found["frames"]),
        )
    except FileNotFoundError:
        raise ValueError(
            f"no trajectory at {path}: give the trajectory.npz that Inference.py writes"
        ) from None
    except Exception as error:  # numpy and zipfile raise many kinds for what is no .npz
        raise ValueError(
            f"{path} is not a trajectory ({type(error).__name__}): give the trajectory.npz that Inference.py writes"
        ) from None
    if (
        frames.dtype != np.uint8
        or frames.ndim != 5
        or frames.shape[4] not in (1, 3)
        or times.shape != frames.shape[:1]
        or not frames.size
    ):
        raise ValueError(
            f"{path} must hold frames uint8 (F,N,H,W,1 or 3) and times (F,), not {frames.dtype} {frames.shape}, {times.shape}"
        )
    if (
        times.dtype.kind not in "iu"
        or predicted.dtype != frames.dtype
        or predicted.shape != frames.shape
    ):
        raise ValueError(
            f"{path} must hold whole numbers as times, not {times.dtype}, and predicted like frames, not {predicted.dtype} "
            f"{predicted.shape}"
        )
    columns = found.get("columns", np.zeros((), int))
    return found | {
        "columns": np.maximum(0, columns if columns.dtype.kind == "i" and not columns.shape else 0)
    }
