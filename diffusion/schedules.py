"""Noise schedules: beta(1) .. beta(T), with which alpha_bar falls from 1 at t = 0 to about 0 at T.

    beta = betas("cosine", T=1000)                 # float64 (T,)
    alpha_bar = np.cumprod(1 - beta)               # float64 (T,), at t = 1 .. T

All in float64. Letters in the shape columns: T the number of steps.
"""

from pathlib import Path

import numpy as np

from runtime.suggestions import unknown

SCHEDULES = ("linear", "cosine", "sigmoid")
LARGEST = 0.999  # of beta: Nichol & Dhariwal 2021, section 3.2, "to prevent singularities"


def betas(schedule: str, T: int, beta_small: float = 1e-4, beta_large: float = 0.02) -> np.ndarray:
    """float64 (T,), beta(1) .. beta(T).

    "linear": from beta_small to beta_large, section 4 of Ho et al. 2020. The other two are given
    by alpha_bar(t), and know neither: "cosine": cos^2, Eq. 17 of Nichol & Dhariwal 2021;
    "sigmoid": sigmoid from 3 to -3, Jabri et al. 2022 ("Scalable adaptive computation for
    iterative generation"). Raises ValueError for another name.
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
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], LARGEST)


def zero_terminal_snr(beta: np.ndarray) -> np.ndarray:
    """float64 (T,) -> (T,) with alpha_bar(T) = 0, so that x_T is noise and nothing else;
    alpha_bar(1) stays what it was.

    sqrt(alpha_bar) is shifted and scaled, Algorithm 1 of Lin et al. 2024, "Common diffusion noise
    schedules and sample steps are flawed". eps cannot be predicted with it: x_T does not depend on
    x_0.
    """
    signal = np.cumprod(1 - beta) ** 0.5
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    return 1 - (signal / np.concatenate([[1.0], signal[:-1]])) ** 2


def read_betas(path: str) -> tuple[float, ...]:
    """beta(1) .. beta(T) from a text file, numbers separated by white space. Raises ValueError, in
    one line."""
    try:
        beta = tuple(float(word) for word in Path(path).read_text().split())
    except FileNotFoundError:
        raise ValueError(unknown("schedule", path, SCHEDULES, " or a file of betas")) from None
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a table of betas ({error}): one number a line, "
            "from t = 1 to t = T"
        ) from None
    if not beta or not all(0 < b < 1 for b in beta):
        raise ValueError(
            f"{path} must hold beta(1) .. beta(T), numbers between 0 and 1, one a line"
        )
    return beta
