"""The exponential moving average of the weights, appendix B of Ho et al. 2020."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from DiffusionModel import DiffusionModel
from runtime.compiling import eager
from training.step_callback import StepCallback


class Ema(StepCallback):
    """Keep the exponential moving average of the parameters, which is used for sampling.

    The decay at update n is min(`decay`, (1 + n) / (10 + n)), so that the average of a short run is
    not dominated by its initialization. The average is kept beside the live weights; only
    `applied` puts it into the model, for a block. Checkpoints store it under the key "ema".
    """

    def __init__(self, decay: float = 0.9999):
        self.decay = decay
        self.n = 0
        self.weights: dict[str, Tensor] = {}
        # The averages and the live weights, in the same order.
        self.averages: list[Tensor] = []
        self.live: list[Tensor] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModel)
        live = dict(pl_module.unet.named_parameters())
        start = self.weights or live
        self.weights = {name: start[name].detach().clone().to(p.device) for name, p in live.items()}
        self.averages = list(self.weights.values())
        self.live = list(live.values())

    @torch.no_grad()
    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        decay = min(self.decay, (1 + self.n) / (10 + self.n))
        lerp: Any = torch._foreach_lerp_  # type: ignore[reportPrivateImportUsage]
        lerp(self.averages, self.live, 1 - decay)
        self.n += 1

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["ema"] = {"n": self.n, "weights": self.weights}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.n = checkpoint["ema"]["n"]
        self.weights = checkpoint["ema"]["weights"]

    @contextlib.contextmanager
    def applied(self, model: DiffusionModel) -> Iterator[None]:
        """Put the averaged weights into the model, in eval mode, inside the block.

        Its own weights and mode are restored afterwards, bit for bit.
        """
        live = {name: p.detach().clone() for name, p in model.unet.named_parameters()}
        training = model.training
        try:
            model.unet.load_state_dict(self.weights)
            model.eval()
            with eager():
                yield
        finally:
            model.unet.load_state_dict(live)
            model.train(training)
