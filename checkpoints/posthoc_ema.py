"""The mathematics of post-hoc EMA: the length of an average is chosen after training.

    exponent = gamma(0.05)                 # of an average over 5% of the training
    snapshots = [(1000, exponent), (2000, exponent)]
    factors, error = combination(snapshots, (2000, gamma(0.1)))

During training, two averages with power-function profiles are kept: the weights of a step
contribute in proportion to step ** exponent. Snapshots of both are saved. An average of any other
length is approximated by a linear combination of the snapshots, found by least squares.

Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models" (EDM2),
section 3 and appendix C.
"""

import numpy as np

# The relative standard deviations of the two averages kept during training, section 3.2.
LENGTHS = (0.05, 0.10)
SHORTEST, LONGEST = 0.01, 0.25  # limits of the lengths that can be chosen


def gamma(length: float) -> float:
    """The exponent of the averaging profile of this length.

    length: relative standard deviation of the averaging profile. Eq. 123, appendix C:
    length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)). Raises ValueError unless the length is
    between 0.01 and 0.25.
    """
    if not SHORTEST <= length <= LONGEST:
        raise ValueError(
            f"an average of {length:g} of the training: "
            f"choose a length from {SHORTEST} to {LONGEST}"
        )
    roots = np.roots([1, 7, 16 - length**-2, 12 - length**-2])
    return float(roots[np.abs(roots.imag) < 1e-9].real.max())


def decay(step: int, exponent: float) -> float:
    """The decay of the average when the network's weights after this step are added to it.

    Steps count from 1, where the decay is 0.
    """
    return (1 - 1 / step) ** (exponent + 1)


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """The inner product of two profiles (step, exponent): the integral of p_a p_b.

    p(s) = (g + 1) s^g / step^(g + 1) for s up to `step`, and 0 after it.
    """
    (s, g), (t, h) = sorted((a, b))
    return (g + 1) * (h + 1) / (g + h + 1) * (s / t) ** h / t


def combination(
    snapshots: list[tuple[int, float]], target: tuple[int, float]
) -> tuple[np.ndarray, float]:
    """The factors of the snapshots that best approximate the target's profile, and the error.

    snapshots, target: (step, exponent) each. The factors sum to 1. The error is the distance
    between both profiles, relative to the norm of the target.
    """
    rows = []
    for a in snapshots:
        rows.append([overlap(a, b) for b in snapshots])
    A = np.array(rows)
    b = np.array([overlap(a, target) for a in snapshots])
    scale = np.diag(A) ** -0.5  # makes the system well-conditioned
    factors = scale * np.linalg.lstsq(A * scale[:, None] * scale[None], b * scale, rcond=1e-12)[0]
    factors /= factors.sum()
    squared = 1 + (factors @ A @ factors - 2 * factors @ b) / overlap(target, target)
    return factors, max(0.0, squared) ** 0.5
