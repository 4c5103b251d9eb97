"""The progress line of a training run."""

import sys
import time
from collections.abc import Callable

import pytorch_lightning as pl
from torch import Tensor
from tqdm import tqdm

from runtime.progress_bar import LOG_PAUSE, TERMINAL_PAUSE
from training.step_callback import StepCallback
from training.validation import Validation


class Progress(StepCallback):
    """Show one line for the whole run: steps, mean loss, images a second, time left.

    A terminal refreshes it twice a second; a log file gets a new line every minute. The loss is the
    mean since the last update over this process's images, and is read from the device only for an
    update. `seconds_left` returns the time that --max-time leaves.
    """

    def __init__(self, batch_size: int, seconds_left: Callable[[], float], validation: Validation):
        self.batch_size = batch_size
        self.validation = validation
        self.seconds_left = seconds_left
        self.terminal = sys.stderr.isatty()
        self.pause = TERMINAL_PAUSE if self.terminal else LOG_PAUSE
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
        self.restart()

    def restart(self) -> None:
        """Start a new interval over which loss and speed are averaged."""
        self.loss: Tensor | float = 0.0
        self.steps = 0
        self.since = time.monotonic()

    def on_micro_batch_end(self, loss: Tensor) -> None:
        self.loss = self.loss + loss.detach()

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps += 1
        seconds = time.monotonic() - self.since
        if seconds >= self.pause or trainer.should_stop:
            self.update_line(trainer, seconds)
            self.restart()
        self.bar.update(1)

    def update_line(self, trainer: pl.Trainer, seconds: float) -> None:
        """Show loss, speed and time left, measured over the last `seconds`."""
        rate = self.steps / seconds
        left = min((trainer.max_steps - trainer.global_step) / rate, self.seconds_left())
        text = (
            f"loss {float(self.loss) / self.steps:.4f}, {rate * self.batch_size:.0f} images/s, "
            f"{tqdm.format_interval(max(0, left))} left"
        )
        self.bar.set_postfix_str(text, refresh=False)
        if not self.terminal:
            line = f"step {trainer.global_step} of {trainer.max_steps}: {text}"
            print(line, file=sys.stderr, flush=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.validation.cut_short:
            result = "cut short"
        else:
            result = f"{float(trainer.callback_metrics['val_loss']):.4f}"
        self.write(f"step {trainer.global_step}: validation loss {result}")

    def write(self, text: str) -> None:
        """Print a line about a measurement, whose duration is left out of the speed."""
        self.bar.write(text, sys.stderr)
        self.restart()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.bar.close()
