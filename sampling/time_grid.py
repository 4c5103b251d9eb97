"""The times that a sampler steps through.

times = time_grid(model, 20, start=1000)        # [1000, 950, .., 50, 0]
"""

import math
from collections.abc import Iterable

import numpy as np

from diffusion.denoiser import Denoiser

GRIDS = ("uniform", "quadratic", "log-snr", "edm")
RHO = 7  # table 1 of Karras et al. 2022


def time_grid(
    model: Denoiser, steps: int, start: int, grid: str = "uniform", keep: Iterable[int] = ()
) -> list[int]:
    """The times from `start` to 0 in `steps` steps of at least 1, and every t of `keep`, which
    adds steps.

    grid: the spacing of the times,
    - "uniform" in t;
    - "quadratic": t ~ (1 - i/n)^2 (Song et al. 2021, DDIM, appendix D.2);
    - "log-snr": uniform in log SNR from `start` to t = 1, then 0 (Lu et al. 2022, DPM-Solver,
      section 3.3);
    - "edm": uniform in (sigma / signal)^(1/7) from `start` to t = 1, then 0 (Karras et al. 2022,
      Eq. 5).

    The last three take smaller steps at low noise. Raises ValueError if there are more steps than
    times.
    """
    if not 1 <= steps <= start:
        raise ValueError(f"{steps} steps from t = {start}: choose from 1 to {start} steps")
    u = np.arange(steps + 1) / steps  # (steps+1,) 0 .. 1
    if grid == "uniform":
        ideal = start * (1 - u)
    elif grid == "quadratic":
        ideal = start * (1 - u) ** 2
    elif grid in GRIDS:
        ideal = nearest_times(noise_scale(model, start, grid), steps)
    else:
        raise ValueError(f"unknown grid {grid!r}: one of {', '.join(GRIDS)}")
    times, last = [], start + 1
    for i, t in enumerate(ideal):
        # below the previous time, and high enough that all later steps are at least 1
        last = max(min(round(t), last - 1), steps - i)
        times.append(last)
    times[0] = start
    return sorted({*times, *(t for t in keep if 0 <= t <= start)}, reverse=True)


def noise_scale(model: Denoiser, start: int, grid: str) -> np.ndarray:
    """The quantity (start,) in which the grid is uniform, at t = 1 .. start. It is non-decreasing
    and finite."""
    ratio = []
    for t in range(1, start + 1):
        alpha_bar = model.alpha_bar(t)
        ratio.append((1 - alpha_bar) ** 0.5 / alpha_bar**0.5 if alpha_bar else math.inf)
    value = np.log(ratio) if grid == "log-snr" else np.array(ratio) ** (1 / RHO)
    if not math.isfinite(value[-1]):  # alpha_bar(T) = 0
        value[-1] = value[-2] if start > 1 else 1e9
    return value


def nearest_times(value: np.ndarray, steps: int) -> np.ndarray:
    """The times (steps+1,) whose values are nearest to `steps` evenly spaced ones from value(start)
    to value(1), and 0."""
    fraction = np.arange(steps) / max(1, steps - 1)
    even = value[-1] + (value[0] - value[-1]) * fraction  # (steps,)
    nearest = np.abs(value[None] - even[:, None]).argmin(1) + 1
    return np.append(nearest, 0)
