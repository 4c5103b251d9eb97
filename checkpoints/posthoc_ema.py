"""Averages of the weights whose length is chosen after training.

    a = gamma(0.05)                                    # exponent of an average 5% of the training long
    factors, error = combination([(1000, a), (2000, a)], (2000, gamma(0.1)))     # of snapshots (step, exponent) -> of another average

While training runs, `Callbacks.PowerEmas` keeps two averages with power-function profiles, the step to the power of an
exponent, and a snapshot of both now and then; any other length is a combination of the snapshots, found by least squares.
Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models" (EDM2), section 3.1 and appendix C.
"""

import numpy as np

LENGTHS = (0.05, 0.10)  # of the two averages: their relative standard deviation, section 3.1
SHORTEST, LONGEST = 0.01, 0.25  # what can be asked for


def gamma(length: float) -> float:
    """The exponent of the profile whose standard deviation is `length` of the training so far, Eq. 3 of appendix C:
    length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)). Raises ValueError where it is not from 0.01 to 0.25."""
    if not SHORTEST <= length <= LONGEST:
        raise ValueError(
            f"an average of {length:g} of the training: choose a length from {SHORTEST} to {LONGEST}"
        )
    roots = np.roots([1, 7, 16 - length**-2, 12 - length**-2])
    return float(roots[np.abs(roots.imag) < 1e-9].real.max())


def decay(step: int, exponent: float) -> float:
    """What the average keeps of itself when the weights after step 1, 2, .. come in; nothing at the first."""
    return (1 - 1 / step) ** (exponent + 1)


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """The inner product of two profiles (step, exponent): the integral of p_a p_b, p(s) = (g + 1) s^g / step^(g + 1) up to step."""
    (s, g), (t, h) = sorted((a, b))
    return (g + 1) * (h + 1) / (g + h + 1) * (s / t) ** h / t


def combination(
    snapshots: list[tuple[int, float]], wanted: tuple[int, float]
) -> tuple[np.ndarray, float]:
    """The factors, one for each snapshot (step, exponent), whose sum of profiles is nearest to the one `wanted`, scaled to sum
    to 1; and how far it is from it, as a part of its own norm."""
    A = np.array([[overlap(a, b) for b in snapshots] for a in snapshots])
    b = np.array([overlap(a, wanted) for a in snapshots])
    scale = np.diag(A) ** -0.5  # well-conditioned before it is solved
    factors = scale * np.linalg.lstsq(A * scale[:, None] * scale[None], b * scale, rcond=1e-12)[0]
    factors /= factors.sum()
    squared = 1 + (factors @ A @ factors - 2 * factors @ b) / overlap(wanted, wanted)
    return factors, max(0.0, squared) ** 0.5
