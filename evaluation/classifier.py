"""A small classifier of a labelled dataset, for comparing samples with real images.

    model = load_or_train(train_set, test_set, root="data")   # trained once, then read from data/
    model(images)                                             # uint8 (N,C,H,W) -> logits (N,K)
    model.features(images)                                    # -> (N,F)

It is meant for images unlike those Inception was trained on, such as digits and garments. Distances
in its features can be compared between models measured with the same classifier, but not with FID.
On two cores of an AMD EPYC with bf16, it reaches 99.6% on the test images of MNIST, 92.9% on those
of FashionMNIST and 90.4% on those of CIFAR-10, after 2, 5 and 20 minutes of training.

Letters in the shape columns: N images, C channels, H and W height and width, F features,
K classes.
"""

import hashlib
import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from checkpoints.checkpoint_file import write_torch_file
from Dataset import Batches, DiffSet, to_float
from runtime import devices
from runtime.atomic_file import complete_file
from runtime.progress_bar import progress_bar

BATCH_SIZE = 256
LEARNING_RATE = 0.2
WEIGHT_DECAY = 5e-4
SEED = 0
MAX_SHIFT = 2  # largest random shift of a training image, in pixels
IMAGE_SIZE = 32  # images of other sizes are resized to this size
NARROW_EPOCHS = {"mnist": 4, "fashionmnist": 8, "shapes": 4}  # datasets that need few channels
NARROW_WIDTH = 32
WIDE_EPOCHS = 16
WIDE_WIDTH = 64
MIN_STEPS = 100  # even with very few images


def block(c: int, d: int) -> nn.Module:
    """Convolution, batch normalization, ReLU: (N,c,H,W) -> (N,d,H,W)."""
    return nn.Sequential(nn.Conv2d(c, d, 3, padding=1, bias=False), nn.BatchNorm2d(d), nn.ReLU())


class Residual(nn.Module):
    """Two blocks with a skip connection: (N,c,H,W) -> (N,c,H,W), He et al. 2016."""

    def __init__(self, c: int):
        super().__init__()
        self.body = nn.Sequential(block(c, c), block(c, c))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Classifier(nn.Module):
    """A residual network of nine convolutions (He et al. 2016) on 2x2 pixels folded into channels.

    depth: number of image channels. classes: K. width: number of channels in the first layer; the
    features are the mean over the last feature map, so F = 4 * width. mirrored: in eval mode,
    average the features of an image and of its mirror image. `accuracy` is the accuracy on the test
    images.
    """

    def __init__(self, depth: int, classes: int, width: int, mirrored: bool):
        super().__init__()
        self.mirrored = mirrored
        self.body = nn.Sequential(
            nn.PixelUnshuffle(2),
            block(4 * depth, width),
            Residual(width),
            block(width, 2 * width),
            nn.MaxPool2d(2),
            Residual(2 * width),
            block(2 * width, 4 * width),
            nn.MaxPool2d(2),
            Residual(4 * width),
        )
        self.head = nn.Linear(4 * width, classes)
        self.accuracy: Tensor
        self.register_buffer("accuracy", torch.zeros(()))

    def features(self, images: Tensor) -> Tensor:
        """Features (N,F) of images (N,C,H,W), uint8 or float32 in [-1,1]."""
        x = resized(images if images.is_floating_point() else to_float(images))
        x = x.contiguous(memory_format=torch.channels_last)
        features = self.body(x).mean(dim=(2, 3))
        if self.mirrored and not self.training:
            features = (features + self.body(x.flip(3)).mean(dim=(2, 3))) / 2
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N,K) of images (N,C,H,W), uint8 or float32 in [-1,1]."""
        return self.head(self.features(images))


def resized(x: Tensor) -> Tensor:
    """Images (N,C,H,W) in [-1,1] in the size of the network's input."""
    if x.shape[2:] == (IMAGE_SIZE, IMAGE_SIZE):
        return x
    return F.interpolate(x, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)


def load_or_train(
    train_set: DiffSet,
    test_set: DiffSet,
    root: str | Path = "data",
    device: str | torch.device = "cpu",
) -> Classifier:
    """Return a classifier trained on the training images of a dataset, in eval mode.

    It is read from `root`, or trained with a fixed seed and saved there. Raises OSError if it
    cannot be saved.
    """
    narrow = train_set.name in NARROW_EPOCHS
    epochs = NARROW_EPOCHS.get(train_set.name, WIDE_EPOCHS)
    width = NARROW_WIDTH if narrow else WIDE_WIDTH
    mirrored = train_set.flip or train_set.name == "fashionmnist"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)  # seeds the CPU generator only
        model = Classifier(train_set.depth, len(train_set.classes), width, mirrored)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    key = fingerprint(model, epochs, train_set, test_set)
    file = Path(root) / f"{train_set.name}-classifier-{key}.pt"
    try:
        model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception:  # the file is missing or damaged
        train_classifier(model, train_set, test_set, epochs, device)
        save(model.cpu(), file)
    return model.to(device).eval().requires_grad_(False)


def save(model: Classifier, file: Path) -> None:
    """Write the weights. Raises OSError with a one-line message."""
    try:
        with complete_file(file) as temporary:
            write_torch_file(model.state_dict(), temporary)
    except OSError as error:
        raise OSError(
            f"cannot write {file} ({error.strerror}): make room, or choose another --data-root"
        ) from None


def fingerprint(model: Classifier, epochs: int, train_set: DiffSet, test_set: DiffSet) -> str:
    """Hash everything that determines the trained weights: images, network, hyperparameters."""
    data = tuple((split.digest(), split.labels.tolist()) for split in (train_set, test_set))
    training = (epochs, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, SEED, MAX_SHIFT, MIN_STEPS)
    made_from = (*data, str(model), model.mirrored, *training)
    return hashlib.sha256(repr(made_from).encode()).hexdigest()[:8]


def train_classifier(
    model: Classifier,
    train_set: DiffSet,
    test_set: DiffSet,
    epochs: int,
    device: str | torch.device = "cpu",
) -> None:
    """Train with SGD and a one-cycle learning rate; then measure the accuracy on the test set.

    Every image is shifted at random and, if `model.mirrored`, mirrored at random. The state of the
    global random generator is restored afterwards.
    """
    device_type = torch.device(device).type
    bf16 = devices.pick_precision(device_type, "auto") == "bf16"
    model.to(device)
    batch_size = min(BATCH_SIZE, len(train_set))
    batches = Batches(train_set, batch_size, SEED, flip=model.mirrored, device=device)
    total = max(epochs * len(batches), MIN_STEPS)
    optimizer = sgd(model)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=total, pct_start=0.25, cycle_momentum=False
    )
    endless = itertools.chain.from_iterable(itertools.repeat(batches))
    progress = progress_bar(
        itertools.islice(endless, total),
        f"training a classifier of {train_set.name}, once",
        total=total,
        unit=" steps",
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        for x, y in progress:
            with torch.autocast(device_type, torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(model(shifted(x)), y, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    model.accuracy.fill_(accuracy(model, test_set, device))


def sgd(model: Classifier) -> torch.optim.SGD:
    """Return SGD with Nesterov momentum; weight decay applies only to matrices and kernels."""
    kernels = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": kernels, "weight_decay": WEIGHT_DECAY}, {"params": vectors}]
    return torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=0.9, nesterov=True)


@torch.no_grad()
def accuracy(model: Classifier, test_set: DiffSet, device: str | torch.device) -> float:
    """Share of the test images that are classified correctly."""
    batches = Batches(test_set, 500, shuffle=False, device=device)
    correct = [(model(x).argmax(1) == y).sum() for x, y in batches]
    return float(sum(correct)) / len(test_set)


def shifted(x: Tensor) -> Tensor:
    """Shift each image (N,C,H,W) by up to `MAX_SHIFT` pixels in each direction, repeating edges."""
    N, _, H, W = x.shape
    down, right = torch.randint(0, 2 * MAX_SHIFT + 1, (2, N, 1)).to(x.device)
    image = torch.arange(N, device=x.device)[:, None, None]
    rows = down + torch.arange(H, device=x.device)  # (N,H)
    columns = right + torch.arange(W, device=x.device)  # (N,W)
    padded = F.pad(x, (MAX_SHIFT,) * 4, mode="replicate").permute(0, 2, 3, 1)  # (N,H+4,W+4,C)
    return padded[image, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
