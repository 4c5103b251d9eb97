"""The other projects, each with its own network, training steps and sampling."""

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


def diffusers(args: argparse.Namespace, best: bool = False) -> None:
    """Train as examples/unconditional_image_generation/train_unconditional.py does by default, and
    sample with DDPMPipeline.

    best: with channels_last and, if the hardware supports it, mixed_precision bf16.
    """
    from accelerate import Accelerator
    from diffusers import (  # type: ignore[reportPrivateImportUsage]
        DDPMPipeline,
        DDPMScheduler,
        UNet2DModel,
    )
    from diffusers.optimization import get_scheduler

    bf16 = best and has_bf16(args.device)
    width, mults, blocks, level = NETWORKS[args.network]
    kinds = [i == level for i in range(len(mults))]
    net: Any = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=blocks,
        dropout=0.0,
        block_out_channels=tuple(width * m for m in mults),
        norm_num_groups=min(32, width // 4),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in kinds),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(kinds)),
        attention_head_dim=None,
    )
    if best:
        net.to(memory_format=torch.channels_last)
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=args.device == "cpu")
    scheduler = DDPMScheduler(num_train_timesteps=T)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    warmup = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=100_000)
    net, optimizer, warmup = accelerator.prepare(net, optimizer, warmup)
    x_0 = images(args).contiguous(
        memory_format=torch.channels_last if best else torch.contiguous_format
    )

    def step() -> None:
        noise = torch.randn_like(x_0)
        t = torch.randint(0, T, (args.batch,), device=args.device).long()
        with accelerator.accumulate(net):
            loss = F.mse_loss(
                net(scheduler.add_noise(x_0, noise, t), t).sample.float(), noise.float()
            )
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            warmup.step()
            optimizer.zero_grad()
        loss.detach().item()

    pipeline: Any = DDPMPipeline(accelerator.unwrap_model(net), scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def draw(steps: int) -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=bf16):
            pipeline(batch_size=args.batch, num_inference_steps=steps, output_type="np")

    Contender(
        args,
        Output(net),
        zero_rate_adam(net),
        draw,
        step,
        bf16=bf16,
        package="diffusers",
        channels_last=best,
    ).run()


class Output(torch.nn.Module):
    """A network of diffusers that returns a tensor."""

    def __init__(self, net: Any):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t).sample


def lucidrains(args: argparse.Namespace) -> None:
    """Train as its Trainer does by default, and sample with its DDIM."""
    from accelerate import Accelerator
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    width, mults, _, _ = NETWORKS[args.network]
    diffusion: Any = GaussianDiffusion(Unet(width, dim_mults=mults), image_size=32, timesteps=T)
    accelerator = Accelerator(mixed_precision="no", cpu=args.device == "cpu")
    diffusion.to(accelerator.device)
    optimizer: Any = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10).to(accelerator.device)
    model, optimizer = accelerator.prepare(diffusion, optimizer)
    x_0 = (images(args) + 1) / 2

    def step() -> None:
        with accelerator.autocast():
            loss = model(x_0)
        loss.item()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    def draw(steps: int) -> None:
        diffusion.sampling_timesteps = steps
        with contextlib.redirect_stderr(io.StringIO()):
            diffusion.ddim_sample((args.batch, 3, 32, 32))

    Contender(
        args,
        diffusion.model,
        zero_rate_adam(diffusion.model),
        torch.no_grad()(draw),
        step,
        package="denoising-diffusion-pytorch",
    ).run()
