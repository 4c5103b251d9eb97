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

from diffusion import augment as Augment
from diffusion import objective, schedules
from diffusion.forward_process import ForwardProcess
from diffusion.likelihood import bound_term
from runtime.randomness import Purpose, generator, seed_of
from Unet import Unet

PARAMETERIZATIONS = ("eps", "x0", "v")
VARIANCES = ("large", "small", "learned")
BOUND = 1e-3  # weight of the variational bound in the hybrid loss: lambda in section 3.1 of Nichol & Dhariwal 2021
FUSED = (
    "cpu",
    "cuda",
)  # where torch's fused Adam heeds grad_scale and found_inf; on "mps" it leaves them out
SKIPS = (
    5  # steps in a row without a finite gradient, after which training will not recover by itself
)


class DiffusionModel(pl.LightningModule, ForwardProcess):
    """DDPM; every default is that of Ho et al. 2020.

    T: number of steps. schedule: "linear" from beta_small to beta_large, or another of `Schedule.betas`; betas: a table
    of T numbers instead. zero_terminal_snr: see `Schedule`. parameterization: what the network predicts, "eps", "x0", or
    "v" (Salimans & Ho 2022, appendix D). variance: sigma_t^2 of a reverse step, "large" (beta_t) or "small" (the
    posterior's), section 3.2, or "learned" between them (Nichol & Dhariwal 2021, section 3.1). weighting, t_sampling: see
    `Objective`. label_dropout: share of labels hidden in training, where the network has classes (Ho & Salimans 2022).
    augment: see `Augment`. lr, warmup: Adam's rate and the steps in which it rises linearly from 0. seed: of the noise in
    training. dataset, class_names: what it is trained on, kept so that a checkpoint is complete. network: the arguments
    of `Unet`. All of them end up in `hparams`, so that `DiffusionModel(**hparams)` is this model.

    Raises ValueError where betas are not T numbers, or leave no trace of x_0 to predict it from.
    """

    def __init__(
        self,
        T: int = 1000,
        schedule: str = "linear",
        beta_small: float = 1e-4,
        beta_large: float = 0.02,
        betas: tuple[float, ...] = (),
        zero_terminal_snr: bool = False,
        parameterization: str = "eps",
        variance: str = "large",
        weighting: str = "plain",
        t_sampling: str = "uniform",
        label_dropout: float = 0.1,
        augment: float = 0.0,
        lr: float = 2e-4,
        warmup: int = 5000,
        seed: int = 0,
        dataset: str = "",
        class_names: tuple[str, ...] = (),
        **network: Any,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.T, self.parameterization, self.variance = T, parameterization, variance
        self.weighting, self.t_sampling, self.label_dropout, self.augment = (
            weighting,
            t_sampling,
            label_dropout,
            augment,
        )
        self.lr, self.warmup, self.seed = lr, warmup, seed
        network |= {
            "outputs": 2 if variance == "learned" else 1,
            "augmentations": Augment.LABELS if augment else 0,
        }
        self.unet = Unet(**network)
        self.hparams.update(self.unet.settings)  # the defaults too: they may change one day

        if betas and len(betas) != T:
            raise ValueError(f"betas has {len(betas)} numbers, not T = {T}")
        added = (
            np.array(betas) if betas else schedules.betas(schedule, T, beta_small, beta_large)
        )  # (T,)
        self.tabulate(schedules.zero_terminal_snr(added) if zero_terminal_snr else added)
        alpha_bar, least = np.array(self.schedule["alpha_bar"]), 1e-30
        if (
            not (np.diff(alpha_bar[:-1]) < 0).all()
            or not 0 <= alpha_bar[-1] < alpha_bar[-2]
            or alpha_bar[-2] < least
        ):
            raise ValueError(
                "alpha_bar must fall at every t, and the betas leave no trace of the image before t = T "
                f"(at T - 1 it is {alpha_bar[-2]:.0e}): choose fewer steps or other betas"
            )
        if parameterization == "eps" and alpha_bar[-1] < least:
            raise ValueError(
                f"the betas leave no trace of the image at t = {T} (alpha_bar is {alpha_bar[-1]:.0e}): choose fewer steps, "
                "smaller betas, or parameterization v or x0"
            )
        if zero_terminal_snr and weighting in ("min-snr", "p2"):
            raise ValueError(
                f"weighting {weighting} gives no weight to t = T, where sampling begins with zero_terminal_snr: "
                "choose plain or edm"
            )

        self.rank, self.world = 0, 1  # this process's place among those that train
        self.stream = 0  # of noise; another one after going back
        self.accumulate = 1  # parts of a step's images, one after another
        self.compiled: dict[
            bool, Any
        ] = {}  # unet.forward as torch.compile has it, by self.training
        self.register_buffer(
            "skipped", torch.zeros(()), persistent=False
        )  # () steps in a row, as known on the device
        self.cut_short = False  # leave out what remains of the validation

    # ---- parameterization ----------------------------------------------------------------------------------------

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        """The network's output for x_t: x (B,C,H,W), t (B,) in 1..T, y (B,) labels or None, augmentation (B,L) or None ->
        (B,C,H,W), or (B,2C,H,W) where the variance is learned."""
        return self.compiled.get(self.training, self.unet)(
            x, t - 1, y, augmentation
        )  # the network counts from 0; nothing else does

    def example(self, B: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """What `unet` is given for B images, in training or in sampling, whichever the model is ready for; all of it 0."""
        net, none = self.unet, torch.zeros(B, dtype=torch.long, device=self.device)
        return (
            torch.zeros(B, net.depth, net.size, net.size, device=self.device),
            none,
            none.clone() if net.classes else None,
            torch.zeros(B, Augment.LABELS, device=self.device)
            if self.augment and self.training
            else None,
        )

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should predict: eps, x_0, or v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0."""
        if self.parameterization == "eps":
            return eps
        if self.parameterization == "x0":
            return x_0
        signal, sigma = self.signal_and_sigma(t)
        return signal * eps - sigma * x_0

    def predictions(
        self, output: Tensor, x: Tensor, signal: Any, sigma: Any
    ) -> tuple[Tensor, Tensor]:
        """x0_hat (B,C,H,W) from the network's `output` for x = signal x_0 + sigma eps, Eq. 15 of Ho et al. 2020 where that is
        eps; and from its second half, where there is one, the place of the learned log variance between the small one (0)
        and the large one (1)."""
        output, *rest = output.float().split(x.shape[1], dim=1)
        if self.parameterization == "eps":
            x0_hat = (x - sigma * output) / signal
        elif self.parameterization == "x0":
            x0_hat = output
        else:
            x0_hat = signal * x - sigma * output
        return x0_hat, (rest[0] + 1) / 2 if rest else torch.full_like(x0_hat, torch.nan)

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None = None, clip: bool = True) -> Tensor:
        """x0_hat (B,C,H,W), the prediction of x_0 from x_t (B,C,H,W) at t (B,) in 1..T for labels y (B,) or None;
        `clip`ped to [-1, 1] as in the paper's code."""
        x0_hat = self.predictions(self(x, t, y), x, *self.signal_and_sigma(t))[0]
        return x0_hat.clamp(-1, 1) if clip else x0_hat

    def denoise_and_share(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, clip: bool = True
    ) -> tuple[Tensor, Tensor]:
        """`denoise`, and with it the place of the learned log variance between the small one (0) and the large one (1)."""
        x0_hat, share = self.predictions(self(x, t, y), x, *self.signal_and_sigma(t))
        return x0_hat.clamp(-1, 1) if clip else x0_hat, share

    def denoise_at(self, ratio: float, x: Tensor, y: Tensor | None = None) -> Tensor:
        """x0_hat (B,C,H,W), not clipped, of x (B,C,H,W) in which sigma / signal is `ratio`: any number above 0, between the
        t that the network was trained at, too."""
        signal, sigma, t = self.at_ratio(ratio)
        return self.predictions(
            self(x, torch.full((len(x),), t, device=x.device), y), x, signal, sigma
        )[0]

    # ---- Algorithm 2 ---------------------------------------------------------------------------------------------

    def denoise_sample(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        z: Tensor | None = None,
        clip: bool = True,
    ) -> Tensor:
        """One reverse step, Algorithm 2 of Ho et al. 2020: x_t (B,C,H,W) at t (B,) in 1..T -> x_s, s = t - 1 by default.

        z (B,C,H,W) is standard normal noise, drawn here where it is not given; none is added where s = 0.
        """
        s = t - 1 if s is None else s
        x0_hat, share = self.denoise_and_share(x, t, clip=clip)
        mean, small = self.posterior(x0_hat, x, t, s)
        variance = (
            self.step_beta(t, s)
            if self.variance == "large"
            else small
            if self.variance == "small"
            else self.log_variance(share, self.step_beta(t, s), small).exp()
        )
        z = torch.randn_like(x) if z is None else z
        return mean + (s > 0)[:, None, None, None] * variance.sqrt() * z

    @staticmethod
    def log_variance(share: Tensor, large: Tensor, small: Tensor) -> Tensor:
        """Eq. 15, Nichol & Dhariwal 2021; where the small variance is 0 its logarithm is -46."""
        return share * large.log() + (1 - share) * small.log().clamp(min=-46)

    # ---- Algorithm 1 ---------------------------------------------------------------------------------------------

    def get_loss(self, batch: Any, batch_idx: int) -> Tensor:
        """Algorithm 1 of Ho et al. 2020, L_simple (Eq. 14): the mean squared error at t ~ U{1..T}; or the loss that was
        chosen: other times and weights, and with a learned variance L_hybrid (Eq. 16, Nichol & Dhariwal 2021).

        batch: x_0 (B,C,H,W) in [-1,1] or a tuple of it and labels (B,). t and eps are a function of (seed, batch_idx), so
        give every batch of a training run its own number: `training_step` gives the number of the step. Where several
        processes train, `batch` is this one's share; they are drawn for all of it, and the shares' mean is its loss.
        """
        return self._errors(
            batch,
            (self.seed, Purpose.TRAIN, batch_idx, self.stream),
            self.rank,
            self.world,
            train=True,
        )[1].mean()

    def loss_in_parts(self, batch: Any, batch_idx: int) -> Tensor:
        """`get_loss` of a batch (x_0, y) in `accumulate` parts, one after another, so that what lies between the layers needs memory
        for one of them. The gradient of all but the last part is there afterwards; that of the last is the returned loss's."""
        key, parts, before = (
            (self.seed, Purpose.TRAIN, batch_idx, self.stream),
            self.accumulate,
            torch.zeros((), device=self.device),
        )
        *early, last = enumerate(zip(*(values.chunk(parts) for values in batch)))
        if not early:
            return self.get_loss(batch, batch_idx)
        for i, part in early:
            loss = (
                self._errors(part, key, self.rank * parts + i, self.world * parts, train=True)[
                    1
                ].mean()
                / parts
            )
            with torch.autocast(self.device.type, enabled=False):
                loss.backward()  # within DDP's forward: what the processes exchange later is the sum of all
            before += loss.detach()
        return (
            before
            + self._errors(
                last[1], key, self.rank * parts + last[0], self.world * parts, train=True
            )[1].mean()
            / parts
        )

    def _errors(
        self, batch: Any, key: tuple[int, ...], rank: int = 0, world: int = 1, train: bool = False
    ) -> tuple[Tensor, Tensor]:
        """t (B,) and each image's error at its t (B,): mean squared, and in training as it was chosen to count. All that
        is random comes from `generator(*key)` for `world` times B images, of which these are the `rank`-th B."""
        x_0, y = (
            (batch[0], batch[1]) if isinstance(batch, (tuple, list)) else (batch, None)
        )  # (B,C,H,W), (B,)
        B, random, augmentation = len(x_0), generator(x_0.device, *key), None
        share = slice(rank * B, (rank + 1) * B)
        t = objective.draw_times(
            self.t_sampling if train else "uniform", world * B, self._ratio[1:], random
        )[share]  # (B,)
        eps = torch.randn((world * B, *x_0.shape[1:]), generator=random, device=x_0.device)[
            share
        ]  # (B,C,H,W)
        if y is not None and train and self.unet.classes:
            hidden = (
                torch.rand(world * B, generator=random, device=x_0.device)[share]
                < self.label_dropout
            )  # (B,)
            y = torch.where(hidden, self.unet.classes, y)
        if train and self.augment:
            x_0, augmentation = Augment.augmented(
                x_0, Augment.draw(world * B, self.augment, random)[share]
            )
        x_t = self.q_sample(x_0, t, eps)  # (B,C,H,W)
        output = self(
            x_t, t, y if self.unet.classes else None, augmentation
        ).float()  # (B,C,H,W) or (B,2C,H,W)
        error = F.mse_loss(
            output[:, : x_0.shape[1]], self.target(x_0, eps, t), reduction="none"
        ).mean(dim=(1, 2, 3))  # (B,)
        if train and self.weighting != "plain":
            error = error * objective.weight(self.weighting, self.parameterization, self._snr[t])
        if train and self.variance == "learned":
            error = error + BOUND * self.T * self.bound_term(output, x_0, x_t, t)
        return t, error

    def bound_term(self, output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """L_{t-1} of the variational bound in bits a value (B,), t (B,) in 1..T; at t = 1 the decoder's, Eq. 13, Ho et al.
        2020. Only the variance learns from it, not the mean (Nichol & Dhariwal 2021, section 3.1)."""
        C = x_0.shape[1]
        x0_hat, share = self.predictions(
            torch.cat([output[:, :C].detach(), output[:, C:]], dim=1),
            x_t,
            *self.signal_and_sigma(t),
        )
        return bound_term(self, x_0, x_t, t, x0_hat.clamp(-1, 1), share).mean(
            dim=(1, 2, 3)
        ) / np.log(2)

    # ---- training ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        self.rank, self.world = self.trainer.global_rank, self.trainer.world_size

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # dropout is a function of the step
        key = (self.seed, Purpose.DROPOUT, self.trainer.global_step, self.rank, self.stream)
        seed = seed_of(*key) >> 1
        torch.default_generator.manual_seed(
            seed
        )  # torch.manual_seed would look up, at every step, who calls it
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.accumulate > 1:
            self.trainer.optimizers[0].zero_grad()  # Lightning would do it after this
        loss = self.loss_in_parts(
            batch, self.trainer.global_step
        )  # batch_idx begins anew every epoch
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            mean = self.trainer.strategy.reduce(
                loss.detach().clone(), reduce_op="mean"
            )  # of all processes: they wait for each other
            for logger in (
                self.loggers
            ):  # self.log would be written once more, under another step, where training is stopped
                logger.log_metrics({"train_loss": float(mean)}, self.trainer.global_step)
        return loss * torch.where(
            loss.isfinite(), 1.0, torch.nan
        )  # in every process's gradient, so that all skip the step

    def on_validation_epoch_start(self) -> None:
        self.validated = torch.zeros(
            2, 10, device=self.device
        )  # sum of errors and number of images for each bin

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The loss on unseen images, with the same t and eps at every validation, in all and in ten bins of t. Of
        several processes each takes every `world`-th batch."""
        if self.cut_short or not len(batch[0]):
            return
        t, error = self._errors(
            batch, (self.seed, Purpose.VALIDATE, batch_idx * self.world + self.rank)
        )
        bins = F.one_hot((t - 1) * 10 // self.T, 10).float()  # (B,10)
        self.validated += torch.stack([error[:, None] * bins, bins]).sum(
            dim=1
        )  # (2,10); no matmul: autocast rounds

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

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if self.accumulate == 1:
            optimizer.zero_grad()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the gradient's norm, or have Adam skip the step where it is not finite. On `FUSED` devices nothing waits: Adam does the
        dividing in its one pass, and the skipping, which fused optimizers have for automatic mixed precision."""
        gradients = [p.grad for p in optimizer.param_groups[0]["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        bad = (~norm.isfinite()).float()
        scale = (norm / gradient_clip_val).clamp(min=1) if gradient_clip_val else None
        if norm.device.type in FUSED:
            optimizer.found_inf, optimizer.grad_scale = bad, scale
        elif bad:  # this waits for the device
            optimizer.zero_grad()  # Adam leaves out what has no gradient
        elif scale is not None:
            torch._foreach_div_(gradients, scale)  # type: ignore[reportPrivateImportUsage]
        self.skipped = torch.where(self.skipped >= SKIPS, self.skipped, (self.skipped + bad) * bad)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["noise"] = {"stream": self.stream, "skipped": int(self.skipped)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.stream = checkpoint["noise"]["stream"]
        self.skipped.fill_(checkpoint["noise"]["skipped"])

    def configure_optimizers(self) -> Any:
        """Adam with a linear warm-up, appendix B of Ho et al. 2020."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr, fused=True)
        warmup = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / max(1, self.warmup))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}
