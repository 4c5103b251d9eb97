"""Noise schedules beta(1) .. beta(T). alpha_bar falls from 1 at t = 0 to about 0 at t = T.

    beta = betas("cosine", T=1000)                 # float64 (T,)
    alpha_bar = np.cumprod(1 - beta)               # float64 (T,), at t = 1 .. T

All in float64. Letters in the shape columns: T the number of steps.
"""

from pathlib import Path

import numpy as np

from runtime.suggestions import unknown

SCHEDULES = ("linear", "cosine", "sigmoid")
MAX_BETA = 0.999  # limit of beta "to prevent singularities": Nichol & Dhariwal 2021, section 3.2


def betas(schedule: str, T: int, beta_small: float = 1e-4, beta_large: float = 0.02) -> np.ndarray:
    """float64 (T,), beta(1) .. beta(T).

    "linear": from beta_small to beta_large, section 4 of Ho et al. 2020. The other two define
    alpha_bar(t) and ignore beta_small and beta_large. "cosine": cos^2, Eq. 17 of Nichol & Dhariwal
    2021. "sigmoid": a sigmoid whose argument falls from 3 to -3, Jabri et al. 2022 ("Scalable
    adaptive computation for iterative generation"). Raises ValueError for any other name.
    """
    if schedule == "linear":
        return np.linspace(beta_small, beta_large, T)
    u = np.arange(T + 1) / T  # (T+1,)
    if schedule == "cosine":
        alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    elif schedule == "sigmoid":
        alpha_bar = 1 / (1 + np.exp(6 * u - 3))
        alpha_bar = alpha_bar - alpha_bar[-1]
    else:
        raise ValueError(f"unknown schedule {schedule!r}: one of {', '.join(SCHEDULES)}")
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], MAX_BETA)


def zero_terminal_snr(beta: np.ndarray) -> np.ndarray:
    """Rescale the schedule to alpha_bar(T) = 0, so that x_T is pure noise: float64 (T,) -> (T,).

    sqrt(alpha_bar) is shifted and scaled so that alpha_bar(1) does not change: Algorithm 1 of Lin
    et al. 2024, "Common diffusion noise schedules and sample steps are flawed". A network that
    predicts eps cannot use it, because at t = T a prediction of eps contains nothing about x_0.
    """
    signal = np.cumprod(1 - beta) ** 0.5
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    return 1 - (signal / np.concatenate([[1.0], signal[:-1]])) ** 2


def read_betas(path: str) -> tuple[float, ...]:
    """Read beta(1) .. beta(T) from a text file of numbers separated by white space. Raises
    ValueError with a one-line message."""
    try:
        beta = tuple(float(word) for word in Path(path).read_text().split())
    except FileNotFoundError:
        raise ValueError(unknown("schedule", path, SCHEDULES, " or a file of betas")) from None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a table of betas ({error}): one number per line, "
            "from t = 1 to t = T"
        ) from None
    if not beta or not all(0 < b < 1 for b in beta):
        raise ValueError(
            f"{path} must hold beta(1) .. beta(T), numbers between 0 and 1, one per line"
        )
    return beta
