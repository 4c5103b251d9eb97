"""Trainings without a Trainer: those of this project's recipes, and those of the other projects.

    training = RecipeTraining(["--optimizer", "adam"], "fashionmnist", "data", seed=0, total=600)
    training.steps(600)
    images = training.sample(1000, seed=0)  # uint8 (N,C,H,W)

Letters in the shapes: N images, C channels, H and W height and width.
"""

import itertools
from functools import partial
from typing import Any, Protocol

import torch
from peers import Diffusers, Lucidrains
from torch import Tensor

import train
from checkpoints.early_average import guiding_step
from Dataset import DiffSet, load_dataset, to_float, to_uint8
from DiffusionModel import DiffusionModel
from runtime.devices import pick_precision
from runtime.launcher import launch
from sampling.guidance import Guide
from sampling.plan import plan_sampling
from sampling.sample_sets import sample_batch
from training.ema import Ema
from training.settings import TrainingSettings
from training.setup import TrainingRun, set_up

BATCH = 100  # images sampled at once
EVALUATIONS = 40  # of a peer's network for a sample, as in the laptop preset


class Training(Protocol):
    """data: the training images. unseen: those of the other split."""

    data: DiffSet
    unseen: DiffSet

    def steps(self, count: int) -> None: ...

    def sample(self, count: int, seed: int) -> Tensor: ...


def set_up_recipe(flags: list[str], dataset: str, root: str, seed: int) -> TrainingRun:
    """Set up a run of train.py with the laptop preset and these flags."""
    words = ["--dataset", dataset, "--data-root", root, "--seed", str(seed), *flags]
    parsed = train.parse_with_preset(words, "laptop")
    settings = TrainingSettings.from_flags(vars(parsed), "laptop")
    return set_up(settings, launch("recipes.py", device="cpu"))


class RecipeTraining:
    """A recipe of this project, with the average of the weights and `total` steps."""

    def __init__(self, flags: list[str], dataset: str, root: str, seed: int, total: int):
        self.run, self.total = set_up_recipe(flags, dataset, root, seed), total
        self.data, self.unseen, self.model = self.run.data, self.run.unseen, self.run.model
        configured = self.model.configure_optimizers(total)
        self.optimizer = configured["optimizer"]
        self.schedule = configured["lr_scheduler"]["scheduler"]
        self.ema = Ema(self.run.settings.ema_decay)
        self.ema.on_fit_start(None, self.model)  # type: ignore[arg-type]
        self.precision = pick_precision("cpu", "auto")
        self.early: dict[str, Tensor] = {}

    def steps(self, count: int) -> None:
        """Take the first `count` steps."""
        batches = itertools.chain.from_iterable(itertools.repeat(self.run.batches))
        for step, batch in zip(range(count), batches):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
                loss = self.model.get_loss(batch, step)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.run.settings.clip)
            self.optimizer.step()
            self.schedule.step()
            self.ema.on_step_end(None, self.model)  # type: ignore[arg-type]
            if step + 1 == guiding_step(self.total):
                self.early = {name: value.clone() for name, value in self.ema.weights.items()}

    def guide(self) -> Guide | None:
        """The early average as a guide, if the recipe has guidance and no labels."""
        if self.model.settings.guidance == 1 or self.model.unet.classes:
            return None
        worse = DiffusionModel(**self.model.hparams).eval().requires_grad_(False)
        worse.unet.load_state_dict(self.early)
        return Guide(worse, "early")

    def sample(self, count: int, seed: int) -> Tensor:
        """Sample with UniPC and the recipe's guidance."""
        guide = self.guide()
        guidance = self.model.settings.guidance if guide or self.model.unet.classes else 1.0
        with self.ema.applied(self.model):
            plan = plan_sampling(
                self.model, guidance=guidance, guide=guide, precision=self.precision
            )
            batches = [range(first, first + BATCH) for first in range(0, count, BATCH)]
            return torch.cat([sample_batch(self.model, plan, batch, seed) for batch in batches])


class PeerTraining:
    """Another project's network of the same width and depth, with its own training step and batch
    size; sampling with DDIM in `EVALUATIONS` steps."""

    def __init__(self, name: str, dataset: str, root: str, seed: int):
        torch.manual_seed(seed)
        self.data, self.unseen = (load_dataset(train, dataset, root) for train in (True, False))
        make: Any = PEERS[name]
        self.peer = make("laptop", self.data.depth, "cpu")

    def steps(self, count: int) -> None:
        for _ in range(count):
            chosen = torch.randint(len(self.data), (16,))
            self.peer.step(to_float(self.data.images[chosen]))

    def sample(self, count: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        batches = [self.peer.sample(BATCH, EVALUATIONS) for _ in range(0, count, BATCH)]
        return to_uint8(torch.cat(batches))


PEERS = {
    "diffusers": partial(Diffusers, ddim=True),
    "lucidrains": partial(Lucidrains, averaged=True),
}
