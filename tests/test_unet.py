"""The network against the published one and against its own contract."""

import pytest
import torch
from models import NETWORK, gradients
from torch import nn

from checkpoints.diffusers_weights import to_diffusers
from Unet import Attention, ResidualBlock, Stage, Unet, Upsample, attend, time_embedding


def perturbed(net: nn.Module) -> nn.Module:
    """Add noise to all weights, because zero-initialized layers would hide the other layers."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    return net.eval()


def test_the_papers_network_is_the_published_one():
    """Parameters and output of google/ddpm-cifar10-32's configuration, on the same weights."""
    from diffusers import UNet2DModel

    other = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        center_input_sample=False,
        time_embedding_type="positional",
        freq_shift=1,
        flip_sin_to_cos=False,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        mid_block_scale_factor=1,
        downsample_padding=0,
        act_fn="silu",
        attention_head_dim=None,
        norm_num_groups=32,
        norm_eps=1e-6,
    ).eval()
    net = perturbed(Unet(3, 128, (1, 2, 2, 2), (16,), 2))
    assert (
        sum(p.numel() for p in net.parameters())
        == 35_746_307
        == sum(p.numel() for p in other.parameters())
    )
    other.load_state_dict(to_diffusers(net.state_dict(), 4, 2))
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 871])
    with torch.no_grad():
        ours, theirs = net(x, t), other(x, t).sample
    assert theirs.abs().max() > 0.1
    assert (ours - theirs).abs().max() <= 1e-5 * max(1, theirs.abs().max())


@pytest.mark.parametrize("way", ["unfused", "fused"])
def test_both_ways_to_enlarge_are_repeated_pixels_and_a_convolution(way):
    """`fused` is for CPUs, `unfused` for other devices, which the tests may not have."""
    layer = perturbed(Upsample(3).double())
    enlarge = getattr(layer, way)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    plainly = layer.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    upstream = torch.randn_like(plainly)
    inputs = (x, *layer.parameters())
    assert torch.allclose(enlarge(x), plainly, atol=1e-12, rtol=0)
    gradients = (torch.autograd.grad(out, inputs, upstream) for out in (enlarge(x), plainly))
    for found, expected in zip(*gradients, strict=True):
        assert torch.allclose(found, expected, atol=1e-12, rtol=0)


def test_time_embedding_frequencies_fall_from_1_to_1_over_10000():
    e = time_embedding(torch.tensor([0, 1000]), 8)
    assert torch.equal(e[0], torch.tensor([0.0, 0, 0, 0, 1, 1, 1, 1]))
    assert torch.allclose(e[1, 3], torch.tensor(0.1).sin(), atol=1e-5)  # 1000 / 10000
    assert torch.allclose(e[1, 0], torch.tensor(1000.0).sin(), atol=1e-5)


def test_at_first_the_output_is_zero_and_each_stage_its_shortcut():
    net = Unet(1, 32, (1, 2), (8,), 1, size=16)
    x = torch.randn(2, 1, 16, 16)
    assert not net(x, torch.tensor([0, 5])).any()
    stages = [layer for layer in net.modules() if isinstance(layer, Stage)]
    assert any(isinstance(stage.attention, Attention) for stage in stages)
    for stage in stages:
        h = torch.randn(1, stage.block.conv1.in_channels, 4, 4)
        assert torch.equal(stage(h, torch.randn(1, 4 * 32)), stage.block.shortcut(h))


@pytest.mark.parametrize(
    ("width", "groups"), [(128, 32), (64, 16), (32, 8), (48, 4), (20, 1), (6, 1)]
)
def test_narrow_layers_take_fewer_groups(width, groups):
    net = perturbed(Unet(3, width, (1, 2), (8,), 1, size=16))
    assert net.norm_out.num_groups == groups
    assert net(torch.randn(1, 3, 16, 16), torch.tensor([1])).isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"film": True},
        {"patch": 2},
        {"classes": 3},
        {"blocks": 2},
        {"attention": ()},
        {"depth": 1},
    ],
)
def test_time_and_every_weight_reach_the_output(options):
    net = perturbed(
        Unet(
            **{
                "depth": 3,
                "width": 16,
                "mults": (1, 2),
                "attention": (8,),
                "blocks": 1,
                "size": 16,
                **options,
            }
        )
    )
    x, t = torch.randn(2, net.depth, 16, 16), torch.tensor([1, 7])
    out = net(x, t)
    assert out.shape == x.shape
    assert not torch.allclose(out[0], net(x, torch.tensor([9, 7]))[0])  # time matters
    assert torch.allclose(
        out[1], net(x, torch.tensor([9, 7]))[1], atol=1e-6
    )  # but not that of another image
    out.square().sum().backward()
    silent = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert not silent


def test_a_label_matters_only_where_there_are_classes():
    net = perturbed(Unet(1, 16, (1,), (), 1, size=8, classes=3))
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([4])
    outputs = [
        net(x, t, y) for y in (None, torch.tensor([0]), torch.tensor([2]), torch.tensor([3]))
    ]
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])
    assert torch.equal(outputs[0], outputs[3])  # the row after the last class is "no label"
    plain = perturbed(Unet(1, 16, (1,), (), 1, size=8))
    assert torch.equal(plain(x, t), plain(x, t, torch.tensor([2])))


def test_attention_is_at_the_chosen_resolutions_and_in_the_middle():
    net = Unet(3, 32, (1, 2, 2), (16,), 1, size=32)
    attending = [
        i
        for i, stage in enumerate(net.down)
        if isinstance(stage, Stage) and not isinstance(stage.attention, nn.Identity)
    ]
    assert attending == [2]  # stage 32, down, stage 16, down, stage 8
    assert not isinstance(net.middle1.attention, nn.Identity)


def test_attention_resolutions_are_those_of_the_smaller_side():
    for size in ((32, 64), (64, 32)):
        net = Unet(3, 32, (1, 2, 2), (16,), 1, size=size)
        attending = [
            i
            for i, stage in enumerate(net.down)
            if isinstance(stage, Stage) and not isinstance(stage.attention, nn.Identity)
        ]
        assert attending == [2]  # at 16x32, or 32x16
        assert net.shape == (3, *size)
        x, t, *_ = net.example(2)
        assert net(x, t).shape == (2, 3, *size)


def test_dropout_acts_in_training_only():
    net = perturbed(Unet(1, 16, (1,), (), 1, dropout=0.5, size=8))
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([0])
    assert torch.equal(net(x, t), net(x, t))
    net.train()
    assert not torch.equal(net(x, t), net(x, t))


@pytest.mark.parametrize(
    "options",
    [
        {"size": 30},
        {"size": 28, "patch": 2},
        {"size": (32, 30)},
        {"size": (30, 32)},
        {"width": 5},
    ],
)
def test_sizes_that_do_not_divide_are_refused(options):
    with pytest.raises(ValueError, match=r"divisible|even"):
        Unet(**options)


def test_time_reaches_a_narrow_block():
    """With one channel in each group, the normalization would remove the embedding, which is added
    to all pixels of a channel."""
    block = perturbed(ResidualBlock(8, 8, 32, 0.0, False))
    x, e = torch.randn(1, 8, 4, 4), torch.randn(2, 32) * 10
    assert (block(x, e[:1]) - block(x, e[1:])).abs().max() > 1e-2


def with_random_weights(**network) -> Unet:
    """A network whose last layers are not zero."""
    torch.manual_seed(0)
    net = Unet(**{**NETWORK, **network})
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


def kept_bytes(net: Unet, recompute: bool) -> tuple[int, list[torch.Tensor]]:
    """What is kept between forward and backward, and the gradient."""
    kept = 0

    def count(values: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += values.numel() * values.element_size()
        return values

    net.recompute_activations(recompute)
    net.zero_grad()
    torch.manual_seed(1)  # dropout
    with torch.autograd.graph.saved_tensors_hooks(count, lambda values: values):
        out = net(torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8), torch.tensor([3, 9]))
        kept_forward = kept
        out.square().sum().backward()
    return kept_forward, gradients(net)


def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradient():
    net = with_random_weights(blocks=2, dropout=0.3)
    (everything, expected), (less, found) = kept_bytes(net, False), kept_bytes(net, True)
    assert less < everything / 2
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("positions", [4, 1024, 1025])
def test_attention_is_the_same_written_out_and_fused(positions):
    q, k, v = torch.randn(3, 2, positions, 8, generator=torch.Generator().manual_seed(0)).double()
    weights = torch.einsum("bnc,bmc->bnm", q, k).div(8**0.5).exp()
    torch.testing.assert_close(attend(q, k, v), weights @ v / weights.sum(dim=2, keepdim=True))
