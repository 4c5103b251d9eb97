"""The forward process of Ho et al. 2020, section 2: from x_0 to x_t, and back one step where x_0 is known.

    process.tabulate(Schedule.betas("linear", 1000))               # beta(1) .. beta(T)
    x_t = process.q_sample(x_0, t, eps)

Time counts as in the paper: t = 0 is the clean image, t = T is pure noise; beta(0) = 0 and alpha_bar(0) = 1.
Letters in the shape columns: B batch, C channels, H and W height and width, T the number of steps.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class ForwardProcess(nn.Module):
    """Tables of T + 1 entries, computed in float64 and kept as float32 buffers, and what follows from them alone."""

    def tabulate(self, beta: np.ndarray) -> None:
        """beta: float64 (T,), beta(1) .. beta(T)."""
        beta = np.concatenate([[0.0], beta])  # (T+1,)  beta(0) = 0
        alpha_bar = np.cumprod(1 - beta)  # (T+1,)  alpha_bar(0) = 1
        self.schedule: dict[str, list[float]] = {
            "beta": beta.tolist(),
            "alpha_bar": alpha_bar.tolist(),
        }
        self._beta = self.table("_beta", beta)
        self._alpha_bar = self.table("_alpha_bar", alpha_bar)
        self._signal = self.table("_signal", alpha_bar**0.5)
        self._sigma = self.table("_sigma", (1 - alpha_bar) ** 0.5)
        with np.errstate(divide="ignore", over="ignore"):
            self._snr = self.table("_snr", alpha_bar / (1 - alpha_bar))
            self._ratio = self.table(
                "_ratio", ((1 - alpha_bar) / alpha_bar) ** 0.5
            )  # sigma beside an image of scale 1

    def table(self, name: str, values: np.ndarray) -> Tensor:
        """float64 (T+1,) -> a float32 buffer that moves with the model and is in no checkpoint."""
        self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)
        return getattr(self, name)

    # ---- schedule: t a whole number in 0..T -> float, in double precision; t (B,) -> float32 (B,) ----------------

    def beta(self, t: Any) -> Any:
        return self._beta[t] if isinstance(t, Tensor) else self.schedule["beta"][t]

    def alpha(self, t: Any) -> Any:
        return 1 - self.beta(t)

    def alpha_bar(self, t: Any) -> Any:
        return self._alpha_bar[t] if isinstance(t, Tensor) else self.schedule["alpha_bar"][t]

    def signal_and_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar(t)) and sqrt(1 - alpha_bar(t)), t (B,) -> 2 x (B,1,1,1)."""
        return self._signal[t][:, None, None, None], self._sigma[t][:, None, None, None]

    def step_beta(self, t: Tensor, s: Tensor) -> Tensor:
        """The variance that the forward process adds from s to t > s, both (B,), -> (B,1,1,1): beta(t) where s = t - 1,
        else 1 - alpha_bar(t) / alpha_bar(s), written so that float32 loses few digits."""
        (signal_t, sigma_t), (signal_s, sigma_s) = (
            self.signal_and_sigma(t),
            self.signal_and_sigma(s),
        )
        return torch.where(
            (t - s == 1)[:, None, None, None],
            self._beta[t][:, None, None, None],
            sigma_t**2 - (signal_t / signal_s * sigma_s) ** 2,
        )

    def at_ratio(self, ratio: float) -> tuple[float, float, float]:
        """signal, sigma and t where sigma / signal is `ratio`, for whom t is a real number: its logarithm is linear in t
        between two entries of the table; t is 1 at all smaller ones, which the network was never shown."""
        known = np.array(
            [math.log((1 - a) / a) / 2 if a else math.inf for a in self.schedule["alpha_bar"][1:]]
        )  # (T,)
        signal = 1 / math.hypot(1, ratio)
        return (
            signal,
            ratio * signal,
            float(np.interp(math.log(ratio), known, np.arange(1, len(known) + 1))),
        )

    # ---- forward process -----------------------------------------------------------------------------------------

    def q_sample(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0). Eq. 4, Ho et al. 2020. x_0, eps (B,C,H,W) of any size, t (B,) in 0..T."""
        signal, sigma = self.signal_and_sigma(t)
        return signal * x_0 + sigma * eps

    def posterior(
        self, x_0: Tensor, x_t: Tensor, t: Tensor, s: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean (B,C,H,W) and variance (B,1,1,1) of q(x_s | x_t, x_0). Eq. 6 and 7, Ho et al. 2020, for s = t - 1 (the
        default), and the same with `step_beta` for any s < t."""
        s = t - 1 if s is None else s
        (signal_s, sigma_s), (_, sigma_t), beta = (
            self.signal_and_sigma(s),
            self.signal_and_sigma(t),
            self.step_beta(t, s),
        )
        mean = (signal_s * beta * x_0 + (1 - beta).sqrt() * sigma_s**2 * x_t) / sigma_t**2
        return mean, beta * sigma_s**2 / sigma_t**2
