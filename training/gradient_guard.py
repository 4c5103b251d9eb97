"""Clipping the gradient, and skipping steps whose loss or gradient is not finite."""

import sys
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from tqdm import tqdm

# devices on which torch's fused Adam uses grad_scale and found_inf; on "mps" it ignores both
FUSED = ("cpu", "cuda")
MAX_SKIPPED = 5  # steps in a row that count as divergence


class GradientGuard(pl.Callback):
    """Clip the gradient norm to `clip` (0: no clipping); skip steps whose gradient is not finite.

    On `FUSED` devices nothing waits for the result: the fused optimizer scales the gradient and
    skips the step itself, with the attributes it has for automatic mixed precision.

    Before a validation and at the end, it prints how many steps were skipped.

    skipped (): number of steps skipped in a row, a tensor on the device. It is stored under the
    checkpoint's key "noise", with `attempt`: how often this run went back to an earlier checkpoint.
    skipped_since_report (): number of steps skipped since the last message.
    """

    def __init__(self, clip: float, attempt: int):
        self.clip = clip
        self.attempt = attempt
        self.skipped = torch.zeros(())
        self.skipped_since_report = torch.zeros(())

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.skipped = self.skipped.to(pl_module.device)
        self.skipped_since_report = self.skipped_since_report.to(pl_module.device)

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Make the gradient NaN where the loss is not finite. The mean over all processes is then
        NaN, too, so that all of them skip the step."""
        finite = torch.where(loss.detach().isfinite(), 1.0, torch.nan)
        loss.register_hook(lambda gradient: gradient * finite)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        bad = (~norm.isfinite()).float()
        scale = (norm / self.clip).clamp(min=1) if self.clip else None
        if norm.device.type in FUSED:
            optimizer.found_inf, optimizer.grad_scale = bad, scale
        elif bad:  # this waits for the device
            optimizer.zero_grad()  # parameters without a gradient stay as they are
        elif scale is not None:
            torch._foreach_div_(gradients, scale)  # type: ignore[reportPrivateImportUsage]
        self.skipped_since_report += bad
        # The count stays at MAX_SKIPPED, because `Checkpointing` reads it only every tenth step.
        counted = (self.skipped + bad) * bad
        self.skipped = torch.where(self.skipped >= MAX_SKIPPED, self.skipped, counted)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.report(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.report(trainer)

    def report(self, trainer: pl.Trainer) -> None:
        """Print how many steps were skipped since the last message, if any were."""
        count = int(self.skipped_since_report)
        self.skipped_since_report.zero_()
        if count and trainer.is_global_zero:
            steps = "1 step was" if count == 1 else f"{count} steps were"
            reason = "the loss or the gradient was not finite"
            tqdm.write(f"{steps} skipped up to step {trainer.global_step}: {reason}", sys.stderr)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["noise"] = {"stream": self.attempt, "skipped": int(self.skipped)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.skipped.fill_(checkpoint["noise"]["skipped"])
