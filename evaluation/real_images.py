"""The real images with which samples are compared.

Letters in the shape columns: N images, C channels, H and W height and width, F features.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from Dataset import DiffSet
from evaluation.features import FeatureExtractor, reference_features
from image_data.mapped_images import Images

Split = Literal["train", "test"]
OTHER_SPLIT: dict[Split, Split] = {"train": "test", "test": "train"}


@dataclass(frozen=True)
class RealImages:
    """Both splits of a dataset, and how many of their images are used.

    root: where their features are cached. count: images of each split, None for all of them.
    batch_size: for feature extraction, also of samples.
    """

    train_set: DiffSet
    test_set: DiffSet
    root: str | Path
    count: int | None = None
    batch_size: int = 100

    def split(self, name: Split) -> DiffSet:
        return self.train_set if name == "train" else self.test_set

    def images(self, name: Split, count: int | None = None) -> Images:
        """Return `count` images of a split, uint8 (N,C,H,W); by default `self.count`."""
        data = self.split(name)
        return data.images.index_select(0, data.subset(count or self.count))

    def features(self, extractor: FeatureExtractor, name: Split) -> Tensor:
        """Features (N,F) of the images of a split, in the order of `images`."""
        data = self.split(name)
        return reference_features(extractor, data, self.root, self.count, self.batch_size)
