"""Averages of the weights whose length is chosen after training."""

import numpy as np
import pytest

from checkpoints import posthoc_ema


def profile(steps: int, total: int, exponent: float) -> np.ndarray:
    """The share of each of `total` steps in the average that `decay` gives after `steps` steps."""
    kept = np.zeros(total)
    for step in range(1, steps + 1):
        kept *= posthoc_ema.decay(step, exponent)
        kept[step - 1] += 1 - posthoc_ema.decay(step, exponent)
    return kept


def test_the_exponents_are_those_of_edm2():
    assert posthoc_ema.gamma(0.05) == pytest.approx(16.97, abs=0.01)
    assert posthoc_ema.gamma(0.10) == pytest.approx(6.94, abs=0.01)
    for length in (0.03, 0.1, 0.2):
        kept, at = profile(5000, 5000, posthoc_ema.gamma(length)), np.arange(1, 5001) / 5000
        mean = (kept * at).sum()
        assert kept.sum() == pytest.approx(1)
        assert (kept * (at - mean) ** 2).sum() ** 0.5 == pytest.approx(length, rel=0.01)


@pytest.mark.parametrize(
    ("length", "error"),
    [(0.05, 1e-9), (0.10, 1e-9), (0.03, 0.15), (0.07, 0.02), (0.15, 0.05), (0.2, 0.1)],
)
def test_a_combination_of_snapshots_approximates_the_average_asked_for(length, error):
    steps, exponents = (
        range(250, 2001, 250),
        [posthoc_ema.gamma(kept) for kept in posthoc_ema.LENGTHS],
    )
    snapshots = [(step, exponent) for step in steps for exponent in exponents]
    factors, said = posthoc_ema.combination(snapshots, (2000, posthoc_ema.gamma(length)))
    made = factors @ np.stack([profile(step, 2000, exponent) for step, exponent in snapshots])
    wanted = profile(2000, 2000, posthoc_ema.gamma(length))
    assert factors.sum() == pytest.approx(1)
    assert np.linalg.norm(made - wanted) < error * np.linalg.norm(wanted)
    assert said == pytest.approx(np.linalg.norm(made - wanted) / np.linalg.norm(wanted), abs=0.01)
