"""Sections 2 and 3 of Ho et al. 2020, "Denoising Diffusion Probabilistic Models".

The name in the code and the symbol in the paper:

    x_0, x_t    images, clean and at time t       beta(t)        beta_t, variance added at step t
    eps         the noise in x_t                  alpha(t)       1 - beta_t
    x0_hat      prediction of x_0 from x_t        alpha_bar(t)   product of alpha(1) .. alpha(t)
    s           the next time, s < t              signal, sigma  sqrt(alpha_bar), sqrt(1-alpha_bar)

Time counts as in the paper: t = 0 is the clean image, t = T is pure noise; alpha_bar(0) = 1.
Letters in the shape columns: B batch, C channels, H and W height and width, T number of steps.
"""

from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion import objective
from diffusion.conditions import concatenate_condition, restore_known_pixels
from diffusion.denoiser import Denoiser, Prediction
from diffusion.draws import Draws, split_batch
from diffusion.likelihood import learned_variance_bound
from diffusion.optimizers import build_optimizer, learning_rate_factor
from diffusion.settings import ModelSettings, check_choices
from diffusion.variance import reverse_deviation
from runtime.randomness import Purpose
from Unet import Unet


class ForwardProcess(nn.Module):
    """Section 2: from x_0 to x_t, and one step back if x_0 is known.

    Tables have T + 1 entries, computed in float64 and stored as non-persistent float32 buffers.
    `beta`, `alpha` and `alpha_bar` return a float for an int t, and float32 (B,) for t (B,)."""

    _beta: Tensor
    _alpha_bar: Tensor
    _signal: Tensor
    _sigma: Tensor
    _snr: Tensor
    _ratio: Tensor

    def tabulate(self, beta: np.ndarray) -> None:
        """Compute all tables from beta(1) .. beta(T), float64 (T,)."""
        beta = np.concatenate([[0.0], beta])  # (T+1,)  beta(0) = 0
        alpha_bar = np.cumprod(1 - beta)  # (T+1,)  alpha_bar(0) = 1
        self.schedule = {"beta": beta.tolist(), "alpha_bar": alpha_bar.tolist()}
        with np.errstate(divide="ignore", over="ignore"):
            tables = {
                "_beta": beta,
                "_alpha_bar": alpha_bar,
                "_signal": alpha_bar**0.5,
                "_sigma": (1 - alpha_bar) ** 0.5,
                "_snr": alpha_bar / (1 - alpha_bar),
                "_ratio": ((1 - alpha_bar) / alpha_bar) ** 0.5,  # sigma / signal
            }
        for name, values in tables.items():
            self.register_buffer(name, torch.tensor(values).float(), persistent=False)

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
        """The variance (B,1,1,1) added from s to t > s, both (B,). It is beta(t) if s = t - 1.

        For longer steps: Kingma et al. 2021, appendix A.1.
        """
        signal_t, sigma_t = self.signal_and_sigma(t)
        signal_s, sigma_s = self.signal_and_sigma(s)
        one_step = (t - s == 1)[:, None, None, None]
        longer = sigma_t**2 - (signal_t / signal_s * sigma_s) ** 2  # 1 - alpha_bar_t / alpha_bar_s
        return torch.where(one_step, self._beta[t][:, None, None, None], longer)

    def q_sample(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0), Eq. 4, Ho et al. 2020. x_0, eps (B,C,H,W), t (B,) in 0..T."""
        signal, sigma = self.signal_and_sigma(t)
        return signal * x_0 + sigma * eps

    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B,C,H,W) and variance (B,1,1,1) of q(x_s | x_t, x_0), s < t (B,). Eq. 6 and 7."""
        (signal_s, sigma_s), (_, sigma_t) = self.signal_and_sigma(s), self.signal_and_sigma(t)
        beta = self.step_beta(t, s)
        mean = (signal_s * beta * x_0 + (1 - beta).sqrt() * sigma_s**2 * x_t) / sigma_t**2
        return mean, beta * sigma_s**2 / sigma_t**2


class DiffusionModel(pl.LightningModule, ForwardProcess):
    """Section 3: a network that predicts the noise, its training, and one reverse step.

    settings: the fields of `ModelSettings`. network: a module with the interface of `Unet`; None
    builds a `Unet`. `DiffusionModel(network, **hparams)` rebuilds a model. Raises TypeError for an
    unknown setting, and ValueError for an unknown choice, impossible betas or size. Other
    values are not checked, see `check_settings`."""

    def __init__(self, network: Any = None, **settings: Any):
        super().__init__()
        self.settings = chosen = ModelSettings.from_dict(settings)
        check_choices(chosen)
        self.T, self.seed = chosen.T, chosen.seed
        self.parameterization, self.variance = chosen.parameterization, chosen.variance
        self.unet: Unet = network or Unet(**chosen.network)
        self.tabulate(chosen.beta())
        self.save_hyperparameters(asdict(chosen) | chosen.network)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        """The network's output (B,C or 2C,H,W) for x_t (B,C,H,W), t (B,) in 1..T, labels y (B,).
        For an image-conditional model, x is (B,C+K,H,W): x_t, then the condition's K channels."""
        return self.unet(x, t - 1, y, augmentation)  # the network counts from 0; nothing else does

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should predict: eps, x_0, or v = signal eps - sigma x_0.

        v: Salimans & Ho 2022, section 4.
        """
        if self.parameterization == "eps":
            return eps
        if self.parameterization == "x0":
            return x_0
        signal, sigma = self.signal_and_sigma(t)
        return signal * eps - sigma * x_0

    def predictions(self, output: Tensor, x: Tensor, signal: Any, sigma: Any) -> Prediction:
        """x0_hat and the fraction of a learned variance, from the network's output (B,C or 2C,H,W)
        for x (B,C,H,W) = signal x_0 + sigma eps. signal, sigma: floats or (B,1,1,1).

        eps: Eq. 15, Ho et al. 2020. v: Salimans & Ho 2022, section 4."""
        output, *rest = output.float().split(x.shape[1], dim=1)
        fraction = (rest[0] + 1) / 2 if rest else None
        if self.parameterization == "eps":
            return Prediction((x - sigma * output) / signal, fraction)
        if self.parameterization == "x0":
            return Prediction(output, fraction)
        return Prediction(signal * x - sigma * output, fraction)

    def denoise(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        clip: bool = True,
        condition: Tensor | None = None,
    ) -> Prediction:
        """Predict x_0 from x_t (B,C,H,W) at t (B,) in 1..T for labels y (B,) and a condition
        (B,K,H,W) of K channels; `clip` to [-1, 1]."""
        output = self(concatenate_condition(x, condition), t, y)
        x0_hat, fraction = self.predictions(output, x, *self.signal_and_sigma(t))
        x0_hat = restore_known_pixels(self.settings.condition, x0_hat, condition)
        return Prediction(x0_hat.clamp(-1, 1) if clip else x0_hat, fraction)

    def denoise_sample(
        self: Denoiser,
        x: Tensor,
        t: int,
        s: int | None = None,
        z: Tensor | None = None,
        variance: str | None = None,
        prediction: Prediction | None = None,
    ) -> Tensor:
        """One reverse step, Algorithm 2 of Ho et al. 2020: x_t (B,C,H,W) -> x_s, s = t - 1.

        For s < t - 1, beta(t) becomes 1 - alpha_bar(t) / alpha_bar(s). z (B,C,H,W): standard normal
        noise, drawn by default; none is added if s = 0. variance: the model's by default. The
        sampler ddpm runs this for any `Denoiser`."""
        s = t - 1 if s is None else s
        x0_hat, fraction = prediction or self.denoise(x, torch.full((len(x),), t, device=x.device))
        alpha_bar_t, alpha_bar_s = self.alpha_bar(t), self.alpha_bar(s)
        beta = 1 - alpha_bar_t / alpha_bar_s  # beta(t) for s = t - 1
        signal_s, sigma2_s, sigma2_t = alpha_bar_s**0.5, 1 - alpha_bar_s, 1 - alpha_bar_t
        mean = (signal_s * beta * x0_hat + (1 - beta) ** 0.5 * sigma2_s * x) / sigma2_t  # Eq. 7
        if s == 0:
            return mean
        variance = variance or str(getattr(self, "variance", "large"))
        sigma = reverse_deviation(variance, beta, beta * sigma2_s / sigma2_t, fraction)
        return mean + sigma * (torch.randn_like(x) if z is None else z)

    def get_loss(self, batch: Any, batch_idx: int) -> Tensor:
        """Algorithm 1 of Ho et al. 2020, L_simple (Eq. 14); or with other times and weights, and
        with a learned variance L_hybrid (Eq. 16, Nichol & Dhariwal 2021).

        batch: x_0 (B,C,H,W) in [-1,1], or (x_0, labels (B,)), or (x_0, labels, `Share`). Times and
        noise depend on seed, batch_idx and share; `training_step` gives the global step.
        """
        x_0, y, share = split_batch(batch, self.unet.classes)  # (B,C,H,W), (B,)
        draws = Draws(x_0, (self.seed, Purpose.TRAIN, batch_idx, share.attempt), share)
        t = draws.times(self.settings.t_sampling, self._ratio[1:])  # (B,)
        eps = draws.normal(self.unet.depth)  # (B,C,H,W)
        y = draws.drop_labels(y, self.settings.label_dropout, self.unet.classes)  # (B,)
        x_0, augmentation = draws.augment(x_0, self.settings.augment)  # (B,C,H,W), (B,L)
        x_0, condition = draws.condition(x_0, self.settings.condition, self.unet.depth)
        x_t = self.q_sample(x_0, t, eps)  # (B,C,H,W)
        x = concatenate_condition(x_t, condition)  # (B,C+K,H,W)
        output = self(x, t, y, augmentation).float()  # (B,C or 2C,H,W)
        error = self.squared_error(output, x_0, eps, t) * self.weight(t)  # (B,)
        if self.variance == "learned":
            bound = learned_variance_bound(self, output, x_0, x_t, t)  # (B,)
            error = error + objective.BOUND_WEIGHT * self.T * bound
        return error.mean()

    def squared_error(self, output: Tensor, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The mean squared error of each image, (B,)."""
        error = F.mse_loss(output[:, : x_0.shape[1]], self.target(x_0, eps, t), reduction="none")
        return error.mean(dim=(1, 2, 3))

    def weight(self, t: Tensor) -> Tensor:
        """The weight (B,) of the squared error at t (B,): 1 in the paper."""
        return objective.weight(self.settings.weighting, self.parameterization, self._snr[t])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.get_loss(batch, self.trainer.global_step)  # batch_idx restarts every epoch

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """t (B,) and its squared error (B,). Every validation draws the same t and eps."""
        x_0, y, share = split_batch(batch, self.unet.classes)
        draws = Draws(x_0, (self.seed, Purpose.VALIDATE, batch_idx * share.parts + share.part))
        t, eps = draws.times("uniform", self._ratio[1:]), draws.normal(self.unet.depth)
        x_0, condition = draws.condition(x_0, self.settings.condition, self.unet.depth)
        output = self(concatenate_condition(self.q_sample(x_0, t, eps), condition), t, y).float()
        return {"t": t, "error": self.squared_error(output, x_0, eps, t)}

    def configure_optimizers(self, max_steps: int | None = None) -> Any:
        """By default Adam (appendix B of Ho et al. 2020) with a linear warm-up, as in their code.
        Returns Lightning's dictionary of the optimizer and its learning-rate schedule, which
        advances every step. max_steps: the length of the training, by default the Trainer's."""
        optimizer = build_optimizer(self.settings, self.unet)
        factor = partial(learning_rate_factor, self.settings, max_steps or self.trainer.max_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
