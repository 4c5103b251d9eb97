"""How far one set of images is from another, by their features (see `Features`); computed by torch-fidelity throughout.

    between(samples, real)          # {"frechet": .., "kernel": .., "precision": .., "recall": ..} of features (N,F) and (M,F)

With Inception's features frechet and kernel are FID and KID; with others they are comparable only within those.
Letters in the shape columns: N and M images, F features, K classes.
"""

from typing import Any

import numpy as np
from torch import Tensor
from torch_fidelity.metric_fid import (
    KEY_METRIC_FID,
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import (
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)

SUBSET, SUBSETS = 1000, 100  # of the kernel distance: Bińkowski et al. 2018, section 4
MANIFOLD = 10_000  # images of each set, for precision and recall: their cost grows with the square


def statistics(features: Tensor) -> dict[str, np.ndarray]:
    """Mean (F,) and covariance (F,F) in double precision: all that `frechet` wants to know of a set."""
    return fid_features_to_statistics(features.double())


def frechet(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Between the normal distributions of two `statistics`: Eq. 6 of Heusel et al. 2017, "GANs trained by a two time-scale
    update rule"."""
    return fid_statistics_to_metric(one, other, verbose=False)[KEY_METRIC_FID]


def kernel(samples: Tensor, real: Tensor) -> float:
    """The squared maximum mean discrepancy under (x.y / F + 1)^3, without bias, so that it can be below 0: Bińkowski et al.
    2018, "Demystifying MMD GANs"; the mean over `SUBSETS` subsets of `SUBSET` images, drawn with a fixed seed."""
    size = min(SUBSET, len(samples), len(real))
    return kid_features_to_metric(
        samples.double(), real.double(), kid_subsets=SUBSETS, kid_subset_size=size, verbose=False
    )[KEY_METRIC_KID_MEAN]


def precision_and_recall(samples: Tensor, real: Tensor) -> tuple[float, float]:
    """The share of samples within the real images' manifold, and the reverse: Kynkäänniemi et al. 2019, "Improved precision and
    recall", with 3 neighbours; of the first `MANIFOLD` of each, and as many of both."""
    count = min(len(samples), len(real), MANIFOLD)
    found = prc_features_to_metric(samples[:count], real[:count], save_cpu_ram=True, verbose=False)
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]


def inception_score(logits: Tensor) -> float:
    """exp of the mean of KL(p(y|x) || p(y)), of logits (N,K), mean over 10 parts: Salimans et al. 2016, section 4."""
    return isc_features_to_metric(logits, splits=min(10, len(logits)))[KEY_METRIC_ISC_MEAN]


def between(samples: Tensor, real: Tensor, of_real: Any = None) -> dict[str, float]:
    """All distances of features (N,F) to features (M,F). of_real: the `statistics` of the latter, where they are at hand."""
    precision, recall = precision_and_recall(samples, real)
    return {
        "frechet": frechet(statistics(samples), of_real or statistics(real)),
        "kernel": kernel(samples, real),
        "precision": precision,
        "recall": recall,
    }
