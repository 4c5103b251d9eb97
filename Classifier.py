"""A small classifier of a labelled dataset, whose features tell how near samples are to it.

    judge = Classifier.of("fashionmnist", root="data")             # trained once, some minutes on two cores, then read from data/
    judge(images)                                                  # uint8 (N,C,32,32) -> logits (N,K)
    judge.features(images)                                         # -> (N,128)
    FrechetDistance(judge, real)(samples)                          # 0 for the same images

The distance is Frechet's between two normal distributions (Heusel et al. 2017, Eq. 6, "GANs trained by a two time-scale
update rule"), in these features instead of Inception's: for digits and garments, of which Inception knows nothing. It can
be compared between models that were measured with the same classifier, never with an FID.

Letters in the shape columns: N images, C channels, K classes.
"""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from tqdm import tqdm

from CompleteFile import complete_file
from Dataset import Batches, DiffSet

EPOCHS, BATCH, LR, SEED = 8, 128, 3e-3, 0
SIZE = 32


class Classifier(nn.Module):
    """Four convolutions, each normalized, between them 2x2 pooling; the mean of the last is the features.

    depth: channels of an image, 32x32. classes: K. `accuracy` is that on unseen images, once it is trained.
    """

    def __init__(self, depth: int, classes: int):
        super().__init__()
        def block(c: int, d: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(c, d, 3, padding=1, bias=False), nn.BatchNorm2d(d), nn.ReLU())
        self.body = nn.Sequential(nn.PixelUnshuffle(2), block(4 * depth, 32), block(32, 64), nn.MaxPool2d(2),
                                  block(64, 128), nn.MaxPool2d(2), block(128, 128))
        self.head = nn.Linear(128, classes)
        self.depth, self.num_features = depth, 128
        self.accuracy: Tensor
        self.register_buffer("accuracy", torch.zeros(()))

    def features(self, images: Tensor) -> Tensor:
        """uint8 (N,C,32,32), or float32 in [-1,1] -> (N,128)."""
        x = images if images.is_floating_point() else images.float() / 127.5 - 1
        return self.body(x).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (N,C,32,32), or float32 in [-1,1] -> logits (N,K)."""
        return self.head(self.features(images))


def of(name: str, root: str | Path = "data", device: str | torch.device = "cpu") -> Classifier:
    """The classifier of a dataset that `DiffSet` knows, in eval mode; trained with a fixed seed where `root` has none yet."""
    data = DiffSet(True, name, str(root), SIZE)
    judge = Classifier(data.depth, len(data.classes))
    made_from = (data.digest(), data.labels.tolist(), str(judge), EPOCHS, BATCH, LR, SEED)
    file = Path(root) / f"{data.name}-classifier-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:8]}.pt"
    if not file.is_file():
        unseen = DiffSet(False, name, str(root), SIZE)
        judge = trained(data, unseen, device)
        with complete_file(file) as temporary:
            torch.save(judge.cpu().state_dict(), temporary)
    judge.load_state_dict(torch.load(file, weights_only=True))
    return judge.to(device).eval().requires_grad_(False)


def trained(data: DiffSet, unseen: DiffSet, device: str | torch.device = "cpu") -> Classifier:
    """A classifier after `EPOCHS` epochs of AdamW with one cycle of its rate; images are shifted by up to two pixels, and
    mirrored where their kind allows it, garments too."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        judge = Classifier(data.depth, len(data.classes)).to(device)
        batches = Batches(data, min(BATCH, len(data)), SEED, flip=data.flip or data.name == "fashionmnist", device=device)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=LR, weight_decay=1e-2)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=EPOCHS * len(batches))
        for _ in tqdm(range(EPOCHS), desc=f"training a classifier of {data.name}", unit=" epochs"):
            for x, y in batches:
                down, right = torch.randint(0, 5, (2,)).tolist()
                x = F.pad(x, (2, 2, 2, 2), mode="replicate")[:, :, down:down + SIZE, right:right + SIZE]
                loss = F.cross_entropy(judge(x), y, label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cycle.step()
        judge.eval()
        with torch.no_grad():
            hits = [(judge(x).argmax(1) == y).sum() for x, y in Batches(unseen, 500, shuffle=False, device=device)]
        judge.accuracy.fill_(float(sum(hits)) / len(unseen))
    return judge


class FrechetDistance:
    """`FrechetDistance(judge, real)(images)`: between two sets of images, uint8 (N,C,32,32) each, in torchmetrics' computation;
    the features of the real ones are taken once."""

    def __init__(self, judge: Classifier, real: Tensor):
        class Features(nn.Module):
            num_features = judge.num_features

            def forward(self, images: Tensor) -> Tensor:
                return judge.features(images)

        self.device = judge.accuracy.device
        self.metric = FrechetInceptionDistance(feature=Features(), reset_real_features=False).set_dtype(torch.float64).to(self.device)
        self.update(real, is_real=True)

    @torch.no_grad()
    def update(self, images: Tensor, is_real: bool) -> None:
        for batch in images.split(500):
            self.metric.update(batch.to(self.device), real=is_real)

    def __call__(self, images: Tensor) -> float:
        self.metric.reset()
        self.update(images, is_real=False)
        return float(self.metric.compute())
