"""What is kept and shown beside a training step: the average of the weights, previews, progress."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchvision.utils import save_image
from tqdm import tqdm

from checkpoints import posthoc_ema
from checkpoints.run_dir import CompleteCheckpointIO, checksum
from DiffusionModel import DiffusionModel
from runtime.atomic_file import complete_file
from runtime.signals import Stop
from sampling.guidance import Guided
from sampling.samplers import Noise, time_grid, unipc
from training.loggers import Curves


class Ema(pl.Callback):
    """Exponential moving average of the parameters, appendix B of Ho et al. 2020: what is sampled from.

    The decay is min(0.9999, (1 + n) / (10 + n)) at update n, so that a short run is not an average of its initialization.
    It is kept beside the live weights, never written into them, and stored under the checkpoint's key "ema".
    """

    def __init__(self, decay: float = 0.9999):
        self.decay, self.n = decay, 0
        self.weights: dict[str, Tensor] = {}
        self.pair: tuple[list[Tensor], list[Tensor]] = (
            [],
            [],
        )  # the averages and the live weights, in the same order

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        live = dict(pl_module.unet.named_parameters())  # type: ignore[union-attr, operator]
        kept = self.weights or live
        self.weights = {name: kept[name].detach().clone().to(p.device) for name, p in live.items()}
        self.pair = [*self.weights.values()], [*live.values()]

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        decay = min(self.decay, (1 + self.n) / (10 + self.n))
        torch._foreach_lerp_(*self.pair, 1 - decay)  # type: ignore[reportPrivateImportUsage]
        self.n += 1

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["ema"] = {"n": self.n, "weights": self.weights}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.n, self.weights = checkpoint["ema"]["n"], checkpoint["ema"]["weights"]

    @contextlib.contextmanager
    def applied(self, model: DiffusionModel) -> Iterator[None]:
        """Within the block the model has the averaged weights, in eval mode; after it, its own again, bit for bit."""
        live, training = (
            {name: p.detach().clone() for name, p in model.unet.named_parameters()},
            model.training,
        )
        try:
            model.unet.load_state_dict(self.weights)
            model.eval()
            yield
        finally:
            model.unet.load_state_dict(live)
            model.train(training)


class PowerEmas(pl.Callback):
    """The two averages of `PostHocEma`, kept beside the live weights and in every checkpoint under "power"; at each `every`-th
    step `folder/step_*.ckpt` gets a snapshot of both, {"step", "weights": a dictionary for each length}. Where they are
    more than `most`, those at twice, four times, .. as many steps are kept."""

    def __init__(self, folder: Path, every: int, most: int = 64):
        self.folder, self.every, self.most = folder, every, most
        self.weights: list[dict[str, Tensor]] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        live = dict(pl_module.unet.named_parameters())  # type: ignore[union-attr, operator]
        kept = self.weights or [live] * len(posthoc_ema.LENGTHS)
        self.weights = [
            {name: weights[name].detach().clone().to(p.device) for name, p in live.items()}
            for weights in kept
        ]

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        live: Any = [*pl_module.unet.parameters()]  # type: ignore[union-attr, operator]
        for weights, length in zip(self.weights, posthoc_ema.LENGTHS):
            decay = posthoc_ema.decay(trainer.global_step, posthoc_ema.gamma(length))
            torch._foreach_lerp_([*weights.values()], live, 1 - decay)  # type: ignore[reportPrivateImportUsage]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["power"] = self.weights
        if trainer.is_global_zero and trainer.global_step % self.every == 0:
            self.folder.mkdir(exist_ok=True)
            CompleteCheckpointIO().save_checkpoint(
                {"step": trainer.global_step, "weights": self.weights},
                self.folder / f"step_{trainer.global_step:08d}.ckpt",
            )
            kept = self.every
            while trainer.global_step // kept > self.most:
                kept *= 2
            self.remove(lambda step: step % kept != 0)

    def remove(self, which: Callable[[int], bool]) -> None:
        for file in self.folder.glob("step_*.ckpt"):
            if which(int(file.stem.removeprefix("step_"))):
                file.unlink()
                checksum(file).unlink(missing_ok=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.remove(lambda step: step > trainer.global_step)  # of a course that was left

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.weights = checkpoint["power"]


class Preview(pl.Callback):
    """`folder/step_*.png` after every validation: 36 samples of the averaged weights, always from the same noise.

    They take `steps` of UniPC: a look, not a result. Where the model has classes, image i is of class i, and they come in
    turn. A signal ends them without a picture. TensorBoard shows them, too, beside `folder/real.png`.
    """

    def __init__(
        self, folder: Path, ema: Ema, batch_size: int, stop: Stop, count: int = 36, steps: int = 20
    ):
        self.folder, self.ema, self.batch_size, self.stop, self.count, self.steps = (
            folder,
            ema,
            batch_size,
            stop,
            count,
            steps,
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self.show(trainer, "real", self.folder / "real.png")

    def show(self, trainer: pl.Trainer, tag: str, picture: Path) -> None:
        for curves in trainer.loggers:
            if isinstance(curves, Curves):
                curves.show(tag, picture, trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModel)
        model, net, images = pl_module, pl_module.unet, []
        times = time_grid(model, min(self.steps, model.T), model.T)
        with self.ema.applied(model):
            for first in range(0, self.count, self.batch_size):
                indices = range(first, min(first + self.batch_size, self.count))
                noise = Noise(model.seed, indices, (net.depth, net.size, net.size), model.device)
                y = (
                    torch.tensor(indices, device=model.device) % net.classes
                    if net.classes
                    else None
                )
                for t, x_t, _ in unipc(Guided(model, y), noise(), times):
                    if self.stop.signal:
                        return
                    if t == 0:
                        images.append(x_t)
        picture = self.folder / f"step_{trainer.global_step:08d}.png"
        write_grid(torch.cat(images), picture)
        self.show(trainer, "samples", picture)


def write_grid(images: Tensor, path: Path) -> None:
    """Images (N,C,H,W) in [-1,1] as one PNG, in the one fixed value range."""
    with complete_file(path) as temporary:
        save_image(
            images, temporary, nrow=round(len(images) ** 0.5), normalize=True, value_range=(-1, 1)
        )


class Progress(pl.Callback):
    """One line for the whole run: steps, mean loss since the last look, images a second, time left.

    A terminal has it refreshed twice a second, a log file gets a new line a minute. The loss, of this process's images, is
    read from the device only then. `seconds_left` is asked for the time that --max-time leaves.
    """

    def __init__(self, batch_size: int, seconds_left: Callable[[], float]):
        self.batch_size, self.seconds_left = batch_size, seconds_left
        self.terminal = sys.stderr.isatty()
        self.pause = 0.5 if self.terminal else 60.0
        self.bar = tqdm(disable=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            disable=not self.terminal,
            dynamic_ncols=True,
            mininterval=self.pause,
            bar_format="training {percentage:3.0f}% |{bar:12}| {n_fmt}/{total_fmt} steps{postfix}",
        )
        self.begin()

    def begin(self) -> None:
        self.loss: Tensor | float = 0.0
        self.steps, self.since = 0, time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.loss, self.steps = self.loss + outputs["loss"].detach(), self.steps + 1
        seconds = time.monotonic() - self.since
        if seconds >= self.pause or trainer.should_stop:
            rate = self.steps / seconds
            left = min((trainer.max_steps - trainer.global_step) / rate, self.seconds_left())
            said = (
                f"loss {float(self.loss) / self.steps:.4f}, {rate * self.batch_size:.0f} images/s, "
                f"{tqdm.format_interval(max(0, left))} left"
            )
            self.bar.set_postfix_str(said, refresh=False)
            if not self.terminal:
                print(
                    f"step {trainer.global_step} of {trainer.max_steps}: {said}",
                    file=sys.stderr,
                    flush=True,
                )
            self.begin()
        self.bar.update(1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModel)
        found = (
            "cut short"
            if pl_module.cut_short
            else f"{float(trainer.callback_metrics['val_loss']):.4f}"
        )
        self.say(f"step {trainer.global_step}: validation loss {found}")

    def say(self, text: str) -> None:
        """A line of what was measured beside the training: the time that it took is not training's."""
        self.bar.write(text, sys.stderr)
        self.begin()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.bar.close()
