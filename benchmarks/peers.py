"""The other projects, each with its own network, training step and sampler.

    peer = Diffusers("laptop", channels=1, device="cpu")
    peer.step(x_0)                        # x_0 (B,C,32,32) in [-1,1]
    images = peer.sample(64, steps=40)    # (64,C,32,32) in [-1,1]

Letters in the shapes: B images of a batch, C channels.
"""

import argparse
import contextlib
import io
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from turns import Contender, has_bf16, images, zero_rate_adam

# width, multiples, residual blocks a level, the level with attention
NETWORKS = {
    "paper": (128, (1, 2, 2, 2), 2, 1),
    "laptop": (32, (1, 2, 2), 1, 2),
}
T = 1000


class Diffusers:
    """Trains as examples/unconditional_image_generation/train_unconditional.py does by default,
    and samples with DDPMPipeline or, if `ddim`, with DDIMPipeline.

    best: with channels_last and, if the hardware supports it, mixed_precision bf16.
    """

    package = "diffusers"

    def __init__(
        self, network: str, channels: int, device: str, best: bool = False, ddim: bool = False
    ):
        from accelerate import Accelerator
        from diffusers import (  # type: ignore[reportPrivateImportUsage]
            DDIMPipeline,
            DDIMScheduler,
            DDPMPipeline,
            DDPMScheduler,
        )
        from diffusers.optimization import get_scheduler

        self.device, self.bf16, self.channels_last = device, best and has_bf16(device), best
        precision = "bf16" if self.bf16 else "no"
        self.accelerator = Accelerator(mixed_precision=precision, cpu=device == "cpu")
        net = diffusers_network(network, channels)
        if best:
            net.to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(
            net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        warmup = get_scheduler(
            "cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000
        )
        self.net, self.optimizer, self.warmup = self.accelerator.prepare(net, optimizer, warmup)
        self.scheduler = DDPMScheduler(num_train_timesteps=T)
        unwrapped = self.accelerator.unwrap_model(self.net)
        self.pipeline: Any = (
            DDIMPipeline(unwrapped, DDIMScheduler(num_train_timesteps=T))
            if ddim
            else DDPMPipeline(unwrapped, self.scheduler)
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def step(self, x_0: Tensor) -> None:
        if self.channels_last:
            x_0 = x_0.contiguous(memory_format=torch.channels_last)
        noise = torch.randn_like(x_0)
        t = torch.randint(0, T, (len(x_0),), device=self.device).long()
        with self.accelerator.accumulate(self.net):
            x_t: Any = self.scheduler.add_noise(x_0, noise, t)  # type: ignore[reportArgumentType]
            loss = F.mse_loss(self.net(x_t, t).sample.float(), noise.float())
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            self.warmup.step()
            self.optimizer.zero_grad()
        loss.detach().item()

    def sample(self, count: int, steps: int) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            found = self.pipeline(batch_size=count, num_inference_steps=steps, output_type="np")
        return torch.from_numpy(found.images).permute(0, 3, 1, 2) * 2 - 1


def diffusers_network(network: str, channels: int) -> Any:
    """diffusers' UNet2DModel with the width and depth of one of `NETWORKS`."""
    from diffusers import UNet2DModel  # type: ignore[reportPrivateImportUsage]

    width, mults, blocks, level = NETWORKS[network]
    kinds = [i == level for i in range(len(mults))]
    return UNet2DModel(
        sample_size=32,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=blocks,
        dropout=0.0,
        block_out_channels=tuple(width * m for m in mults),
        norm_num_groups=min(32, width // 4),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in kinds),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(kinds)),
        attention_head_dim=None,  # type: ignore[reportArgumentType]
    )


class Output(torch.nn.Module):
    """A network of diffusers that returns a tensor."""

    def __init__(self, net: Any):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t).sample


class Lucidrains:
    """Trains as the Trainer of denoising-diffusion-pytorch does by default, and samples with its
    DDIM. `averaged` samples with the EMA of the weights, as the Trainer does."""

    package = "denoising-diffusion-pytorch"

    def __init__(self, network: str, channels: int, device: str, averaged: bool = False):
        from accelerate import Accelerator
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet
        from ema_pytorch import EMA

        width, mults, _, _ = NETWORKS[network]
        unet = Unet(width, dim_mults=mults, channels=channels)
        self.diffusion: Any = GaussianDiffusion(unet, image_size=32, timesteps=T)
        self.channels, self.averaged = channels, averaged
        self.accelerator = Accelerator(mixed_precision="no", cpu=device == "cpu")
        self.diffusion.to(self.accelerator.device)
        optimizer: Any = torch.optim.Adam(self.diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
        self.ema = EMA(self.diffusion, beta=0.995, update_every=10).to(self.accelerator.device)
        self.model, self.optimizer = self.accelerator.prepare(self.diffusion, optimizer)

    def step(self, x_0: Tensor) -> None:
        with self.accelerator.autocast():
            loss = self.model((x_0 + 1) / 2)
        loss.item()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()

    @torch.no_grad()
    def sample(self, count: int, steps: int) -> Tensor:
        diffusion = self.ema.ema_model if self.averaged else self.diffusion
        diffusion.sampling_timesteps = steps
        with contextlib.redirect_stderr(io.StringIO()):
            return diffusion.ddim_sample((count, self.channels, 32, 32)) * 2 - 1


def diffusers(args: argparse.Namespace, best: bool = False) -> None:
    """diffusers as a contender of speed.py."""
    peer, x_0 = Diffusers(args.network, 3, args.device, best), images(args)
    Contender(
        args,
        Output(peer.net),
        zero_rate_adam(peer.net),
        lambda steps: peer.sample(args.batch, steps),
        lambda: peer.step(x_0),
        bf16=peer.bf16,
        package=peer.package,
        channels_last=best,
    ).run()


def lucidrains(args: argparse.Namespace) -> None:
    """denoising-diffusion-pytorch as a contender of speed.py."""
    peer, x_0 = Lucidrains(args.network, 3, args.device), images(args)
    Contender(
        args,
        peer.diffusion.model,
        zero_rate_adam(peer.diffusion.model),
        lambda steps: peer.sample(args.batch, steps),
        lambda: peer.step(x_0),
        package=peer.package,
    ).run()
