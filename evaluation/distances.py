"""Distances between the features of two sets of images, computed with torch-fidelity.

    all_distances(samples, real)     # features (N,F) and (M,F)
    # {"frechet": .., "kernel": .., "precision": .., "recall": ..}

With Inception's features, frechet and kernel are FID and KID. Distances computed with another
feature extractor can be compared only with each other.

Letters in the shape columns: N and M images, F features, K classes.
"""

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

Statistics = dict[str, np.ndarray]  # "mu" (F,) and "sigma" (F,F)

# for the kernel distance: Bińkowski et al. 2018, section 4
SUBSET_SIZE = 1000
SUBSETS = 100

# images of each set for precision and recall, whose cost grows quadratically
MANIFOLD_IMAGES = 10_000


def statistics(features: Tensor) -> Statistics:
    """Mean and covariance of features (N,F), in double precision: the input of `frechet`."""
    return fid_features_to_statistics(features.double())


def frechet(one: Statistics, other: Statistics) -> float:
    """Distance between the normal distributions of two `statistics`.

    Eq. 6 of Heusel et al. 2017, "GANs trained by a two time-scale update rule".
    """
    return fid_statistics_to_metric(one, other, verbose=False)[KEY_METRIC_FID]


def kernel(samples: Tensor, real: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / F + 1)^3, of features (N,F)
    and (M,F).

    The estimate can be negative. It is the mean over `SUBSETS` random subsets of `SUBSET_SIZE`
    images, or fewer if a set is smaller, with a fixed seed: Bińkowski et al. 2018, "Demystifying
    MMD GANs".
    """
    size = min(SUBSET_SIZE, len(samples), len(real))
    return kid_features_to_metric(
        samples.double(), real.double(), kid_subsets=SUBSETS, kid_subset_size=size, verbose=False
    )[KEY_METRIC_KID_MEAN]


def precision_and_recall(samples: Tensor, real: Tensor) -> tuple[float, float]:
    """Share of samples (N,F) within the manifold of the real images (M,F), and the reverse.

    Kynkäänniemi et al. 2019, "Improved precision and recall", with 3 neighbours. Uses the same
    number of images from each set: the first ones, at most `MANIFOLD_IMAGES`.
    """
    count = min(len(samples), len(real), MANIFOLD_IMAGES)
    metrics = prc_features_to_metric(
        samples[:count], real[:count], save_cpu_ram=True, verbose=False
    )
    return metrics[KEY_METRIC_PRECISION], metrics[KEY_METRIC_RECALL]


def inception_score(logits: Tensor) -> float:
    """exp of the mean of KL(p(y|x) || p(y)) over logits (N,K); the mean of 10 splits.

    Salimans et al. 2016, "Improved techniques for training GANs", section 4.
    """
    return isc_features_to_metric(logits, splits=min(10, len(logits)))[KEY_METRIC_ISC_MEAN]


def all_distances(
    samples: Tensor, real: Tensor, real_statistics: Statistics | None = None
) -> dict[str, float]:
    """All distances of features (N,F) from features (M,F).

    real_statistics: the `statistics` of `real`, if they are already known.
    """
    precision, recall = precision_and_recall(samples, real)
    return {
        "frechet": frechet(statistics(samples), real_statistics or statistics(real)),
        "kernel": kernel(samples, real),
        "precision": precision,
        "recall": recall,
    }
