"""The network of Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B.

    x (B,C,H,W), t (B,), y (B,) or None  ->  (B,C,H,W)

It is independent of the noise schedule: t is only a number to embed, counted from 0 so that
published weights load. The paper's CIFAR-10 network is `Unet(depth=3, width=128,
mults=(1, 2, 2, 2), attention=(16,), blocks=2, dropout=0.1)`: 35,746,307 parameters.

Letters in the shape columns: B batch; C channels, H and W height and width, all three at the given
layer; E = 4 * width, the size of the embedding.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from runtime.image_size import Size, format_size, height_and_width, size_of, smaller_side


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding (Vaswani et al. 2017, section 3.5, as Ho et al. use it): t (B,) ->
    float32 (B, dim).

    The dim/2 sines come first, then the dim/2 cosines; the frequencies fall from 1 to 1/10000.
    """
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / (half - 1)))
    angles = t.float()[:, None] * frequencies  # (B, dim/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)  # (B, dim)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups as in the paper, or fewer, so that a group has at least 4 channels;
    one group if the channels are not a multiple of 4. With one channel per group, the normalization
    would cancel the added time embedding."""
    groups = math.gcd(32, max(1, channels // 4)) if channels % 4 == 0 else 1
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """GroupNorm-SiLU-conv twice, with the embedding added in between, and a shortcut. The weights
    of the last convolution are initialized to zero.

    With `film` the embedding scales and shifts the second normalization instead of being added
    (Nichol & Dhariwal 2021, "Improved DDPM", appendix A; `use_scale_shift_norm` in their code).
    """

    def __init__(self, in_channels: int, channels: int, embedding: int, dropout: float, film: bool):
        super().__init__()
        self.film = film
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.embed = nn.Linear(embedding, 2 * channels if film else channels)
        self.norm2 = group_norm(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = (
            nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, channels, H, W)
        e = self.embed(F.silu(embedding))[:, :, None, None]  # (B, channels or twice that, 1, 1)
        if self.film:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + e)
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(h)))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C)) v with one head: q, k, v (B,N,C) -> (B,N,C). For few positions on a
    CPU it is written out, because torch's fused kernel takes twice as long there in bf16."""
    if q.device.type != "cpu" or q.shape[1] > 1024:
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
    return torch.bmm((torch.bmm(q, k.transpose(1, 2)) * q.shape[-1] ** -0.5).softmax(dim=-1), v)


class Attention(nn.Module):
    """Self-attention over all H*W positions with one head, as in the paper. The weights of the last
    projection are initialized to zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B, H*W, C)
        h = attend(*self.qkv(h).chunk(3, dim=-1))  # (B, H*W, C)
        return x + self.out(h).transpose(1, 2).reshape(B, C, H, W)


class Downsample(nn.Module):
    """Stride-2 convolution, padded only at the right and the bottom, like TensorFlow's "SAME" in
    the paper's code."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # (B, C, H/2, W/2)


class Upsample(nn.Module):
    """Nearest neighbour, then a convolution.

    On a CPU the two are fused into one transposed convolution, which is faster. Several of the
    nine pixels under the 3x3 kernel are copies of the same pixel, so their weights can be added.
    The result is a 4x4 kernel, with 16 products instead of 36 for each input pixel.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x) if x.device.type == "cpu" else self.unfused(x)  # (B, C, 2H, 2W)

    def unfused(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))  # (B, C, 2H, 2W)

    def fused(self, x: Tensor) -> Tensor:
        kernel = self.conv.weight.transpose(0, 1).flip(2, 3)  # (C, C, 3, 3)
        kernel = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))  # (C, C, 4, 3)
        kernel = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))  # (C, C, 4, 4)
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)  # (B, C, 2H, 2W)


class Stage(nn.Module):
    """A residual block, followed by attention if `attend`."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        embedding: int,
        dropout: float,
        film: bool,
        attend: bool,
    ):
        super().__init__()
        self.block = ResidualBlock(in_channels, channels, embedding, dropout, film)
        self.attention = Attention(channels) if attend else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(x, embedding))


class Level(NamedTuple):
    """One resolution of the network: its channels, and whether it has attention."""

    channels: int
    attend: bool


def down_path(
    channels: int, levels: list[Level], blocks: int, stage: Callable[[int, int, bool], Stage]
) -> tuple[nn.ModuleList, list[int]]:
    """The layers from the highest resolution to the lowest, and the channels of the skip
    connections, which come from the first layer's input and from every layer's output."""
    layers, skips = nn.ModuleList(), [channels]
    for level in levels:
        for _ in range(blocks):
            layers.append(stage(skips[-1], level.channels, level.attend))
            skips.append(level.channels)
        if level is not levels[-1]:
            layers.append(Downsample(level.channels))
            skips.append(level.channels)
    return layers, skips


def up_path(
    skips: list[int], levels: list[Level], blocks: int, stage: Callable[[int, int, bool], Stage]
) -> nn.ModuleList:
    """The layers from the lowest resolution to the highest. Each stage takes the output of the
    layer before, concatenated with the most recent unused skip."""
    layers, skips = nn.ModuleList(), list(skips)
    channels = skips[-1]
    for level in reversed(levels):
        for _ in range(blocks + 1):
            layers.append(stage(channels + skips.pop(), level.channels, level.attend))
            channels = level.channels
        if level is not levels[0]:
            layers.append(Upsample(channels))
    return layers


class Unet(nn.Module):
    """U-Net of Ho et al. 2020. The defaults are the paper's CIFAR-10 network, without its dropout
    of 0.1.

    depth: channels of the image.
    condition_depth: channels of the condition, a second image that is concatenated with the first
        (Saharia et al. 2021, "SR3"); 0 for none.
    size: (height, width) of the image, or one number for a square.
    width: base channels; level i has `width * mults[i]`.
    attention: resolutions with self-attention, as the smaller side of the feature map; the middle
        always has it.
    blocks: residual blocks per level on the way down; there is one more on the way up.
    dropout: its probability, before the second convolution of each block.
    film: see `ResidualBlock`.
    patch: side of the squares that are folded into channels at the input and unfolded at the output
        (space-to-depth); 1 is the paper's, 2 makes everything about 4 times cheaper.
    classes: number of labels, 0 for none.
    outputs: output images for each input image, 2 with a learned variance.
    augmentations: length of the vector that describes how an image was augmented; it is all 0 for
        an image that was not (Karras et al. 2022, appendix F.2).

    Raises ValueError if `size` is not divisible by patch * 2^(levels - 1), or `width` is odd or
    less than 4.
    """

    def __init__(
        self,
        depth: int = 3,
        width: int = 128,
        mults: tuple[int, ...] = (1, 2, 2, 2),
        attention: tuple[int, ...] = (16,),
        blocks: int = 2,
        dropout: float = 0.0,
        size: Size = 32,
        patch: int = 1,
        film: bool = False,
        classes: int = 0,
        outputs: int = 1,
        augmentations: int = 0,
        condition_depth: int = 0,
    ):
        super().__init__()
        check_sizes(size, width, patch, len(mults))
        self.depth, self.condition_depth = depth, condition_depth
        self.size, self.patch = size, patch
        self.shape = (depth, *height_and_width(size))  # of an image, (C,H,W)
        self.width, self.classes, self.augmentations = width, classes, augmentations
        self.recompute = False
        E = 4 * width

        def stage(in_channels: int, channels: int, attend: bool) -> Stage:
            return Stage(in_channels, channels, E, dropout, film, attend)

        self.time = nn.Sequential(nn.Linear(width, E), nn.SiLU(), nn.Linear(E, E))
        # The last row of the label embedding means "no label".
        self.label = nn.Embedding(classes + 1, E) if classes else None
        self.augmentation = nn.Linear(augmentations, E, bias=False) if augmentations else None
        self.conv_in = nn.Conv2d((depth + condition_depth) * patch**2, width, 3, padding=1)

        sides = [smaller_side(size) // patch // 2**i for i in range(len(mults))]
        levels = [Level(width * m, side in attention) for m, side in zip(mults, sides)]
        self.down, skips = down_path(width, levels, blocks, stage)
        self.middle1 = stage(skips[-1], skips[-1], attend=True)
        self.middle2 = stage(skips[-1], skips[-1], attend=False)
        self.up = up_path(skips, levels, blocks, stage)

        self.norm_out = group_norm(levels[0].channels)
        self.conv_out = nn.Conv2d(levels[0].channels, outputs * depth * patch**2, 3, padding=1)
        self.initialize()

    def initialize(self) -> None:
        """Initialize all weights: Glorot's uniform and zero biases, as in the paper's code.

        The last layer of every residual branch and of the network is initialized to zero, so each
        block initially equals its shortcut and the output is zero. Label embeddings are initialized
        with normal noise, so that the network learns to use them early.
        """
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, Attention):
                nn.init.zeros_(module.out.weight)
        nn.init.zeros_(self.conv_out.weight)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        """x (B, depth, H, W), t (B,) from 0, labels y (B,) or None, augmentation (B, augmentations)
        or None -> (B, outputs * depth, H, W). For an image-conditional model, x is (B,C+K,H,W):
        x_t, then the condition's K channels."""
        e = self.time(time_embedding(t, self.width))  # (B, E)
        if self.label is not None:
            e = e + self.label(torch.full_like(t, self.classes) if y is None else y)
        if self.augmentation is not None and augmentation is not None:
            e = e + self.augmentation(augmentation)
        h = self.conv_in(F.pixel_unshuffle(x, self.patch))  # (B, width, H/patch, W/patch)
        skips = [h]
        for layer in self.down:
            h = self.run(layer, h, e) if isinstance(layer, Stage) else layer(h)
            skips.append(h)
        h = self.run(self.middle1, h, e)  # (B, C, lowest H, lowest W)
        h = self.run(self.middle2, h, e)
        for layer in self.up:
            if isinstance(layer, Stage):
                h = self.run(layer, torch.cat([h, skips.pop()], dim=1), e)
            else:
                h = layer(h)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return F.pixel_shuffle(h, self.patch)  # (B, outputs * depth, H, W)

    def run(self, stage: Stage, h: Tensor, e: Tensor) -> Tensor:
        """`stage(h, e)`, with gradient checkpointing after `recompute_activations`."""
        if self.recompute and self.training:
            return checkpoint(stage, h, e, use_reentrant=False)
        return stage(h, e)

    def recompute_activations(self, recompute: bool = True) -> None:
        """Turn on gradient checkpointing (Chen et al. 2016): in training, only the input of each
        stage is kept, and the rest is computed again in the backward pass. This takes a quarter of
        the memory for activations and a fifth more time, and gives the same numbers."""
        self.recompute = recompute

    def example(self, B: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Arguments of `forward` for B images, all zero. The augmentation vector is None outside of
        training mode."""
        device = self.conv_in.weight.device
        x = torch.zeros(B, self.depth + self.condition_depth, *self.shape[1:], device=device)
        t = torch.zeros(B, dtype=torch.long, device=device)
        augmentation = None
        if self.augmentation is not None and self.training:
            augmentation = torch.zeros(B, self.augmentations, device=device)
        return x, t, t.clone() if self.classes else None, augmentation


def check_sizes(size: Size, width: int, patch: int, levels: int, title: str = "image size") -> None:
    """Raise ValueError if the size is not divisible by patch * 2^(levels - 1), or the width is odd
    or less than 4. title: the name of the size in the message."""
    divisor = patch * 2 ** (levels - 1)
    sides = height_and_width(size)
    if any(side % divisor for side in sides):
        nearest = [max(1, round(side / divisor)) * divisor for side in sides]
        raise ValueError(
            f"{title} {format_size(size)} is not divisible by {divisor} (patch {patch}, halved "
            f"{levels - 1} times): choose {format_size(size_of(*nearest))}, or other mults or patch"
        )
    if width % 2 or width < 4:
        raise ValueError(
            f"width {width} is not an even number of at least 4 (the time embedding is sines and "
            "cosines)"
        )
