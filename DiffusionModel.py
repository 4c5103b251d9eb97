"""Sections 2 and 3 of Ho et al. 2020, "Denoising Diffusion Probabilistic Models", as a LightningModule.

The name in the code and the symbol in the paper:

    x_0, x_t      images, clean and at time t          beta(t)        beta_t, variance added at step t
    eps           the noise in x_t                     alpha(t)       1 - beta_t
    x0_hat        prediction of x_0 from x_t           alpha_bar(t)   product of alpha(1) .. alpha(t)

Time counts as in the paper: t = 0 is the clean image, t = T is pure noise; beta(0) = 0 and alpha_bar(0) = 1.
Letters in the shape columns: B batch, C channels, H and W height and width, T the number of steps.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from Unet import Unet

PARAMETERIZATIONS = ("eps", "x0", "v")
VARIANCES = ("large", "small")
TRAIN, VALIDATE, DROPOUT = 1, 2, 3  # what randomness is for; Dataset has ORDER = 4 and SHAPES = 6, Sampler IMAGE = 5
SKIPS = 5  # steps in a row without a finite gradient, after which training will not recover by itself


def generator(device: torch.device, *key: int) -> torch.Generator:
    """A random generator that is a pure function of `key` (seed, what it is for, index): resuming needs no saved state."""
    return torch.Generator(device).manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


class DiffusionModel(pl.LightningModule):
    """DDPM with a linear schedule.

    T: number of steps. beta_small, beta_large: beta(1) and beta(T). parameterization: what the network predicts, "eps"
    (Ho et al.), "x0", or "v" (Salimans & Ho 2022, appendix D). variance: sigma_t^2 of a reverse step, "large" (beta_t)
    or "small" (the posterior's), section 3.2. lr, warmup: Adam's rate and the steps in which it rises linearly from 0.
    seed: of the noise in training. dataset, class_names: what it is trained on, kept so that a checkpoint is complete.
    network: the arguments of `Unet`. All of them end up in `hparams`, so that `DiffusionModel(**hparams)` is this model.
    """

    def __init__(self, T: int = 1000, beta_small: float = 1e-4, beta_large: float = 0.02, parameterization: str = "eps",
                 variance: str = "large", lr: float = 2e-4, warmup: int = 5000, seed: int = 0, dataset: str = "",
                 class_names: tuple[str, ...] = (), **network: Any):
        super().__init__()
        self.save_hyperparameters()
        self.T, self.parameterization, self.variance = T, parameterization, variance
        self.lr, self.warmup, self.seed = lr, warmup, seed
        self.unet = Unet(**network)
        self.hparams.update(self.unet.settings)                              # the defaults too: they may change one day

        beta = np.concatenate([[0.0], np.linspace(beta_small, beta_large, T)])               # (T+1,)  beta(0) = 0
        alpha_bar = np.cumprod(1 - beta)                                                     # (T+1,)  alpha_bar(0) = 1
        self.schedule: dict[str, list[float]] = {"beta": beta.tolist(), "alpha_bar": alpha_bar.tolist()}
        self._beta = self.table("_beta", beta)
        self._alpha_bar = self.table("_alpha_bar", alpha_bar)
        self._signal = self.table("_signal", alpha_bar**0.5)
        self._sigma = self.table("_sigma", (1 - alpha_bar) ** 0.5)

        self.rank, self.world = 0, 1                                         # this process's place among those that train
        self.stream = 0                                                      # of noise; another one after going back
        self.skipped = self.table("skipped", np.zeros(()))                   # () steps in a row, as known on the device
        self.cut_short = False                                               # leave out what remains of the validation

    def table(self, name: str, values: np.ndarray) -> Tensor:
        """float64 (T+1,) -> a float32 buffer that moves with the model and is in no checkpoint."""
        self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)
        return getattr(self, name)

    # ---- schedule: t a whole number in 0..T -> float, in double precision; t (B,) -> float32 (B,) ----------------

    def beta(self, t: Any) -> Any:
        return self._beta[t] if isinstance(t, Tensor) else self.schedule["beta"][t]

    def alpha(self, t: Any) -> Any:
        return 1 - self.beta(t)

    def alpha_bar(self, t: Any) -> Any:
        return self._alpha_bar[t] if isinstance(t, Tensor) else self.schedule["alpha_bar"][t]

    def signal_and_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar(t)) and sqrt(1 - alpha_bar(t)), t (B,) -> 2 x (B,1,1,1)."""
        return self._signal[t][:, None, None, None], self._sigma[t][:, None, None, None]

    def step_beta(self, t: Tensor, s: Tensor) -> Tensor:
        """The variance that the forward process adds from s to t > s, both (B,), -> (B,1,1,1): beta(t) where s = t - 1,
        else 1 - alpha_bar(t) / alpha_bar(s), written so that float32 loses few digits."""
        (signal_t, sigma_t), (signal_s, sigma_s) = self.signal_and_sigma(t), self.signal_and_sigma(s)
        return torch.where((t - s == 1)[:, None, None, None], self._beta[t][:, None, None, None],
                           sigma_t**2 - (signal_t / signal_s * sigma_s) ** 2)

    # ---- forward process -----------------------------------------------------------------------------------------

    def q_sample(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0). Eq. 4, Ho et al. 2020. x_0, eps (B,C,H,W) of any size, t (B,) in 0..T."""
        signal, sigma = self.signal_and_sigma(t)
        return signal * x_0 + sigma * eps

    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean (B,C,H,W) and variance (B,1,1,1) of q(x_s | x_t, x_0). Eq. 6 and 7, Ho et al. 2020, for s = t - 1 (the
        default), and the same with `step_beta` for any s < t."""
        s = t - 1 if s is None else s
        (signal_s, sigma_s), (_, sigma_t), beta = self.signal_and_sigma(s), self.signal_and_sigma(t), self.step_beta(t, s)
        mean = (signal_s * beta * x_0 + (1 - beta).sqrt() * sigma_s**2 * x_t) / sigma_t**2
        return mean, beta * sigma_s**2 / sigma_t**2

    # ---- parameterization ----------------------------------------------------------------------------------------

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The network's output for x_t: x (B,C,H,W), t (B,) in 1..T, y (B,) labels or None -> (B,C,H,W)."""
        return self.unet(x, t - 1, y)  # the network counts from 0; nothing else does

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should predict: eps, x_0, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0."""
        if self.parameterization == "eps":
            return eps
        if self.parameterization == "x0":
            return x_0
        signal, sigma = self.signal_and_sigma(t)
        return signal * eps - sigma * x_0

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None = None, clip: bool = True) -> Tensor:
        """x0_hat (B,C,H,W), the prediction of x_0 from x_t (B,C,H,W) at t (B,) in 1..T; `clip`ped to [-1, 1] as in the
        paper's code. For eps it is Eq. 15, Ho et al. 2020."""
        output, (signal, sigma) = self(x, t, y).float(), self.signal_and_sigma(t)
        if self.parameterization == "eps":
            x0_hat = (x - sigma * output) / signal
        elif self.parameterization == "x0":
            x0_hat = output
        else:
            x0_hat = signal * x - sigma * output
        return x0_hat.clamp(-1, 1) if clip else x0_hat

    # ---- Algorithm 2 ---------------------------------------------------------------------------------------------

    def denoise_sample(self, x: Tensor, t: Tensor, s: Tensor | None = None, z: Tensor | None = None,
                       clip: bool = True) -> Tensor:
        """One reverse step, Algorithm 2 of Ho et al. 2020: x_t (B,C,H,W) at t (B,) in 1..T -> x_s, s = t - 1 by default.

        z (B,C,H,W) is standard normal noise, drawn here where it is not given; none is added where s = 0.
        """
        s = t - 1 if s is None else s
        mean, small = self.posterior(self.denoise(x, t, clip=clip), x, t, s)
        variance = small if self.variance == "small" else self.step_beta(t, s)
        z = torch.randn_like(x) if z is None else z
        return mean + (s > 0)[:, None, None, None] * variance.sqrt() * z

    # ---- Algorithm 1 ---------------------------------------------------------------------------------------------

    def get_loss(self, batch: Any, batch_idx: int) -> Tensor:
        """Algorithm 1 of Ho et al. 2020, L_simple (Eq. 14): the mean squared error at t ~ U{1..T}.

        batch: x_0 (B,C,H,W) in [-1,1] or a tuple that begins with it. t and eps are a function of (seed, batch_idx), so
        give every batch of a training run its own number: `training_step` gives the number of the step. Where several
        processes train, `batch` is this one's share; they are drawn for all of it, and the shares' mean is its loss.
        """
        return self._squared_error(batch, (self.seed, TRAIN, batch_idx, self.stream), self.rank, self.world)[1].mean()

    def _squared_error(self, batch: Any, key: tuple[int, ...], rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """t (B,) and the mean squared error of each image at its t (B,), t and eps drawn from `generator(*key)` for
        `world` times B images, of which these are the `rank`-th B."""
        x_0 = batch[0] if isinstance(batch, (tuple, list)) else batch                        # (B,C,H,W)
        B, random = len(x_0), generator(x_0.device, *key)
        share = slice(rank * B, (rank + 1) * B)
        t = torch.randint(1, self.T + 1, (world * B,), generator=random, device=x_0.device)[share]              # (B,)
        eps = torch.randn((world * B, *x_0.shape[1:]), generator=random, device=x_0.device)[share]              # (B,C,H,W)
        output = self(self.q_sample(x_0, t, eps), t).float()                                 # (B,C,H,W)
        return t, F.mse_loss(output, self.target(x_0, eps, t), reduction="none").mean(dim=(1, 2, 3))

    # ---- training ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        self.rank, self.world = self.trainer.global_rank, self.trainer.world_size

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        key = (self.seed, DROPOUT, self.trainer.global_step, self.rank, self.stream)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))  # dropout is a function of the step

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.get_loss(batch, self.trainer.global_step)  # batch_idx begins anew every epoch
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            mean = self.trainer.strategy.reduce(loss.detach().clone(), reduce_op="mean")  # of all processes: they wait for each other
            for logger in self.loggers:  # self.log would be written once more, under another step, where training is stopped
                logger.log_metrics({"train_loss": float(mean)}, self.trainer.global_step)
        return loss * torch.where(loss.isfinite(), 1.0, torch.nan)  # in every process's gradient, so that all skip the step

    def on_validation_epoch_start(self) -> None:
        self.validated = torch.zeros(2, 10, device=self.device)              # sum of errors and number of images for each bin

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The loss on unseen images, with the same t and eps at every validation, in all and in ten bins of t. Of
        several processes each takes every `world`-th batch."""
        if self.cut_short or not len(batch[0]):
            return
        t, error = self._squared_error(batch, (self.seed, VALIDATE, batch_idx * self.world + self.rank))
        bins = F.one_hot((t - 1) * 10 // self.T, 10).float()                                 # (B,10)
        self.validated += torch.stack([error[:, None] * bins, bins]).sum(dim=1)              # (2,10); no matmul: autocast rounds

    def on_validation_epoch_end(self) -> None:
        sums, counts = self.trainer.strategy.reduce(self.validated, reduce_op="sum")
        if not self.cut_short:
            self.log("val_loss", sums.sum() / counts.sum())
            for name, error, count in zip(self.bin_names(), sums, counts):
                if count:
                    self.log(name, error / count)

    def bin_names(self) -> list[str]:
        """The names under which `validation_step` logs the loss of each tenth of the times."""
        ends = [-(-i * self.T // 10) for i in range(11)]
        return [f"val_loss_t{low + 1}-{high}" for low, high in pairwise(ends)]

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        """Clip the gradient, or have Adam skip the step where it is not finite, without waiting for the device."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or torch.inf)
        bad = (~norm.isfinite()).float()
        optimizer.found_inf = bad                                            # torch's own word for it in fused optimizers
        self.skipped = torch.where(self.skipped >= SKIPS, self.skipped, (self.skipped + bad) * bad)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["noise"] = {"stream": self.stream, "skipped": int(self.skipped)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.stream = checkpoint["noise"]["stream"]
        self.skipped.fill_(checkpoint["noise"]["skipped"])

    def configure_optimizers(self) -> Any:
        """Adam with a linear warm-up, appendix B of Ho et al. 2020."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr, fused=True)
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, self.warmup)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}
