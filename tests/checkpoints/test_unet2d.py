"""Networks of diffusers that are not a `Unet`: outputs and samples are those of diffusers."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import TINY
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import save_file
from training_runs import contents, fit, same

import convert
import evaluate
import Inference
import train
from checkpoints.checkpoint import load_model
from checkpoints.networks import UNet2D, build_model
from sampling.guidance import Guided
from sampling.samplers import SAMPLERS, ddim, ddpm
from Unet import Unet

SMALL = {  # the rest is diffusers' defaults: freq_shift 0, downsample_padding 1, norm_eps 1e-5, ...
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
SCHEDULER = {"num_train_timesteps": 20, "beta_end": 0.4}
LEARNED = {"time_embedding_type": "learned", "num_train_timesteps": 20}
ONE_HEAD = {"attention_head_dim": None}
RESNET = {"downsample_type": "resnet", "upsample_type": "resnet"}
CONFIGS = {
    "defaults": {},
    "freq_shift 1": {"freq_shift": 1},
    "downsample_padding 0": {"downsample_padding": 0},
    "sines first": {"flip_sin_to_cos": False},
    "8 groups, widths 24 and 40": {"norm_num_groups": 8, "block_out_channels": (24, 40)},
    "32 groups": {"norm_num_groups": 32, "block_out_channels": (32, 96)},
    "1 group, width 5": {"norm_num_groups": 1, "block_out_channels": (5, 7), **ONE_HEAD},
    "falling widths": {"block_out_channels": (16, 8)},
    "heads of 4": {"attention_head_dim": 4},
    "one head": ONE_HEAD,
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "attn_norm_num_groups": {"attn_norm_num_groups": 2},
    "no attention in the middle": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "mid_block_scale_factor": {"mid_block_scale_factor": 1.5},
    "size of two numbers": {"sample_size": (8, 8)},
    "not square": {"sample_size": (8, 12)},
    "gray": {"in_channels": 1, "out_channels": 1},
    "classes": {"num_class_embeds": 3},
    "time_embedding_dim": {"time_embedding_dim": 20},
    "learned times": LEARNED,
    "center_input_sample": {"center_input_sample": True},
    "gelu": {"act_fn": "gelu"},
    "dropout": {"dropout": 0.3},
    "resampled by residual blocks": RESNET,
    "Resnet blocks": {
        "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D"),
    },
    "Skip blocks": {
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "block_out_channels": (32, 32),
    },
    "three levels": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 2,
    },
}
STEEP = {"beta_start": 0.01, "beta_end": 0.4}
SCHEDULERS = {
    "linear": {},
    "scaled_linear": {"beta_schedule": "scaled_linear"},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid", **STEEP},
    "laplace": {"beta_schedule": "laplace"},
    "trained_betas": {"trained_betas": np.linspace(0.02, 0.3, 20).tolist()},
    "sample": {"prediction_type": "sample"},
    "v_prediction": {"prediction_type": "v_prediction"},
    "sigmoid, v": {"beta_schedule": "sigmoid", "prediction_type": "v_prediction", **STEEP},
    "zero SNR, v": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "zero SNR, sample": {"rescale_betas_zero_snr": True, "prediction_type": "sample"},
    "zero SNR, cosine, v": {
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "beta_schedule": "squaredcos_cap_v2",
    },
    "zero SNR, table, v": {
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "trained_betas": np.linspace(0.02, 0.3, 20).tolist(),
    },
    "fixed_small_log": {"variance_type": "fixed_small_log"},
    "fixed_large": {"variance_type": "fixed_large"},
    "learned_range": {"variance_type": "learned_range"},
}


def quick(cases, *names: str) -> list:
    """All cases; those without these names are marked as slow, because they take a minute."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in cases]


def pipeline(folder, config=None, scheduler=None) -> DDPMPipeline:
    """A pipeline with random weights, saved by diffusers itself.

    The weights are larger than at the start of a training, so that pixels differ.
    """
    torch.manual_seed(0)
    net = UNet2DModel(**SMALL | (config or {})).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    made = DDPMPipeline(net, DDPMScheduler(**SCHEDULER | (scheduler or {})))
    made.save_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def change(file, **values) -> None:
    """Change values in a JSON file; a name whose value is Ellipsis is removed."""
    found = json.loads(file.read_text()) | values
    file.write_text(json.dumps({name: value for name, value in found.items() if value is not ...}))


@pytest.fixture
def written(tmp_path):
    """A pipeline with diffusers' defaults."""
    pipeline(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.fixture
def labelled(tmp_path):
    """A pipeline whose network has three classes."""
    pipeline(tmp_path / "labelled", {"num_class_embeds": 3})
    return tmp_path / "labelled"


# ---- networks ------------------------------------------------------------------------------------


def test_a_network_of_one_class_has_this_class(tmp_path):
    pipeline(tmp_path, {"num_class_embeds": 1})
    model = load_model(tmp_path).model
    assert (model.unet.classes, model.settings.class_names) == (1, ("0",))


@pytest.mark.parametrize("name", quick(CONFIGS, "defaults", "classes", "Skip blocks"))
@torch.no_grad()
def test_a_network_of_diffusers_computes_the_same_here(name, tmp_path):
    theirs = pipeline(tmp_path, CONFIGS[name]).unet
    model = load_model(tmp_path).model
    assert isinstance(model.unet, UNet2D)
    width = 12 if name == "not square" else 8
    assert model.unet.shape == (theirs.config.in_channels, 8, width)
    random = torch.Generator().manual_seed(1)
    x = torch.randn(5, *model.unet.shape, generator=random)
    t = torch.tensor([1, 2, 7, 13, 20])
    y = torch.tensor([0, 1, 2, 1, 0]) if "num_class_embeds" in CONFIGS[name] else None
    expected = theirs(x, t - 1, class_labels=y).sample
    assert (model(x, t, y) - expected).abs().max() <= 1e-5
    assert expected.std() > 0.1
    assert (model(x, t.flip(0), y) - expected).abs().max() > 1e-3  # it depends on the time
    again = build_model(model.hparams)
    again.load_state_dict(model.state_dict())
    assert (again.eval()(x, t, y) - expected).abs().max() <= 1e-5


def test_a_network_equivalent_to_a_unet_becomes_one(tmp_path):
    pipeline(
        tmp_path,
        {
            "freq_shift": 1,
            "flip_sin_to_cos": False,
            "downsample_padding": 0,
            "norm_eps": 1e-6,
            "attention_head_dim": None,
            "norm_num_groups": 1,
            "block_out_channels": (6, 6),
        },
    )
    model = load_model(tmp_path).model
    assert isinstance(model.unet, Unet)
    assert model.settings.unet2d == ""


# ---- schedulers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", quick(SCHEDULERS, "sigmoid, v", "laplace"))
@torch.no_grad()
def test_ddim_samples_the_images_of_diffusers(name, tmp_path):
    """DDIMScheduler with eta = 0, in all 20 steps and in 5. It computes eps from the clipped x_0,
    as `ddim` does."""
    config = {"out_channels": 6} if name == "learned_range" else {}
    made = pipeline(tmp_path, config, SCHEDULERS[name])
    model = load_model(tmp_path).model
    assert np.allclose(
        model.schedule["alpha_bar"][1:], made.scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7
    )
    known = {key: made.scheduler.config[key] for key in ("prediction_type", "num_train_timesteps")}
    theirs = DDIMScheduler(
        trained_betas=made.scheduler.betas.tolist(), timestep_spacing="trailing", **known
    )
    for steps in (20, 5):
        theirs.set_timesteps(steps)
        start = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
        x = start
        for t in theirs.timesteps:
            output = made.unet(x, t).sample[:, :3]
            x = theirs.step(output, t, x, use_clipped_model_output=True).prev_sample
        times = [*(int(t) + 1 for t in theirs.timesteps), 0]
        *_, (_, found, _) = ddim(Guided(model), start, times, lambda: None)
        assert (found - x).abs().max() <= 1e-4
        assert (x.abs() < 0.999).float().mean() > 0.05  # pixels that are not clipped


@pytest.mark.parametrize("name", quick(SCHEDULERS, "learned_range"))
@torch.no_grad()
def test_ddpm_samples_the_images_of_diffusers(name, tmp_path):
    """Algorithm 2 with the same noise, by diffusers' own pipeline."""
    config = {"out_channels": 6} if name == "learned_range" else {}
    made = pipeline(tmp_path, config, SCHEDULERS[name])
    model = load_model(tmp_path).model
    random = torch.Generator().manual_seed(3)
    expected = made(batch_size=3, generator=random, num_inference_steps=20, output_type="np").images
    random = torch.Generator().manual_seed(3)
    noise = lambda: torch.randn(3, 3, 8, 8, generator=random)  # noqa: E731
    *_, (_, x, _) = ddpm(Guided(model), noise(), range(20, -1, -1), noise, model.variance)
    found = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(found - expected).max() <= 1e-4
    assert ((expected > 0.001) & (expected < 0.999)).mean() > 0.05


# ---- everything that a model can do --------------------------------------------------------------


def run(main, *words) -> None:
    assert main([str(word) for word in words]) == 0


FEW = ("--steps", 2, "--num", 2, "--device", "cpu")


@pytest.mark.parametrize("sampler", quick(SAMPLERS, "dpm++"))
def test_every_sampler_samples_from_it(sampler, written, tmp_path):
    run(Inference.main, "--ckpt", written, "--sampler", sampler, "--out", tmp_path / sampler, *FEW)
    assert np.load(tmp_path / sampler / "samples.npz")["arr_0"].std() > 1


def test_every_label_of_a_network_of_diffusers_is_a_class(labelled, tmp_path, refused):
    """It was never trained without a label, so guidance by labels is refused."""
    model = load_model(labelled).model
    assert (model.unet.classes, model.settings.class_names) == (3, ("0", "1", "2"))
    assert model.settings.label_dropout == 0
    run(Inference.main, "--ckpt", labelled, "--class", "2", "--out", tmp_path / "two", *FEW)
    words = ("--ckpt", labelled, "--guidance", 2, "--out", tmp_path / "x", *FEW)
    assert "--guidance needs" in refused(Inference.main, *words)


def test_one_class_becomes_a_pipeline_that_needs_no_label(labelled, tmp_path):
    out = tmp_path / "one"
    run(convert.main, "--ckpt", labelled, "--to", "diffusers", "--class", "1", "--out", out)
    one = DDPMPipeline.from_pretrained(str(out)).unet
    all_three = DDPMPipeline.from_pretrained(str(labelled)).unet
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0, 19])
    with torch.no_grad():
        expected = all_three(x, t, class_labels=torch.tensor([1, 1])).sample
        other = all_three(x, t, class_labels=torch.tensor([0, 0])).sample
        found = one(x, t).sample
    assert (found - expected).abs().max() <= 1e-5
    assert (found - other).abs().max() > 1e-3


@pytest.mark.parametrize("format", quick(["diffusers", "safetensors"], "diffusers"))
def test_it_comes_back_bitwise(format, written, tmp_path):
    ending = ".safetensors" if format == "safetensors" else ""
    out = tmp_path / f"back{ending}"
    run(convert.main, "--ckpt", written, "--to", format, "--out", out)
    before, after = load_model(written).model, load_model(out).model
    assert before.hparams == after.hparams
    assert all(
        torch.equal(value, after.state_dict()[k]) for k, value in before.state_dict().items()
    )
    if format == "diffusers":
        theirs, ours = (UNet2DModel.from_pretrained(f"{path}/unet") for path in (written, out))
        network = {name for name in theirs.config if not name.startswith("_")}
        assert all(theirs.config[name] == ours.config[name] for name in network)


@pytest.mark.slow
def test_onnxruntime_computes_the_same(labelled, tmp_path, capsys):
    out = tmp_path / "model.onnx"
    run(convert.main, "--ckpt", labelled, "--to", "onnx", "--out", out)
    assert "in onnxruntime it is off by" in capsys.readouterr().out


# ---- fine-tuning ---------------------------------------------------------------------------------


def test_a_run_that_begins_with_it_keeps_its_network(written, tiny_data, tmp_path, capsys, refused):
    run_dir, init = tmp_path / "run", ("--init-from", written)
    assert fit(tiny_data, run_dir, "--max-steps", 2, "--lr", 0, *init) == 0
    out = capsys.readouterr().out
    assert "its network, a UNet2DModel of diffusers, is kept" in out
    assert "; new: " not in out
    theirs = load_model(written).model
    assert same(contents(run_dir)["ema"]["weights"], theirs.unet.state_dict())
    assert load_model(run_dir).model.settings.unet2d == theirs.settings.unet2d
    words = ["--dataset", tiny_data, "--run-dir", run_dir, *TINY, "--max-steps", 5]
    assert "give the same --init-from again" in refused(train.main, *words)


@pytest.mark.slow
def test_its_resumed_run_is_the_uninterrupted_one(written, tiny_data, tmp_path):
    init = ("--init-from", written)
    whole = tmp_path / "whole"
    assert fit(tiny_data, whole, "--max-steps", 4, *init) == 0
    halves = tmp_path / "halves"
    assert fit(tiny_data, halves, "--max-steps", 2, *init) == 0
    assert fit(tiny_data, halves, "--max-steps", 4, *init) == 0
    assert same(contents(whole)["state_dict"], contents(halves)["state_dict"])
    theirs = load_model(written).model
    assert not same(contents(whole)["ema"]["weights"], theirs.unet.state_dict())


@pytest.mark.slow
def test_other_classes_and_outputs_get_new_layers(written, tiny_data, tmp_path, capsys):
    run_dir = tmp_path / "run"
    options = ("--class-conditional", "--variance", "learned", "--dropout", 0.2, "--optimizer")
    muon = ("muon", "--gradient-checkpointing", "--init-from", written, "--max-steps", 2)
    assert fit(tiny_data, run_dir, *options, *muon, "--image-size", 16) == 0
    assert (
        "; new: the last convolution, the label embedding for 2 instead of no classes "
        "(net.class_embedding.weight, net.conv_out.weight, net.conv_out.bias)"
    ) in capsys.readouterr().out
    model = load_model(run_dir).model
    assert (model.unet.classes, model.unet.size) == (2, 16)
    config = json.loads(model.settings.unet2d)
    assert (config["out_channels"], config["num_class_embeds"], config["dropout"]) == (6, 3, 0.2)
    out = tmp_path / "guided"
    run(Inference.main, "--ckpt", run_dir, "--guidance", 2, "--class", "1", "--out", out, *FEW)


@pytest.mark.slow
def test_a_fine_tuned_network_is_evaluated(written, tiny_data, tmp_path):
    assert fit(tiny_data, tmp_path / "run", "--max-steps", 2, "--init-from", written) == 0
    words = ("--num", 8, "--seeds", 0, "--steps", 2, "--device", "cpu", "--dataset", tiny_data)
    run(evaluate.main, "--ckpt", tmp_path / "run", "--flow", 2, *words)


def test_augmentation_is_refused(written, tiny_data, tmp_path, refused):
    """The network has no input for it."""
    words = ("--dataset", tiny_data, "--run-dir", tmp_path / "run", *TINY, "--augment", 0.1)
    assert "give --augment 0" in refused(train.main, *words, "--init-from", written)
    assert not (tmp_path / "run").exists()


# ---- refusals ------------------------------------------------------------------------------------


def test_without_diffusers_the_package_is_named(written, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "pip install diffusers" in refused(Inference.main, "--ckpt", written)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sample_size": 7}, "sample_size 7"),
        ({"sample_size": [8, 15]}, "sample_size 8x15"),
        ({"block_out_channels": [8, 18]}, "num_groups"),
        (
            {"time_embedding_type": "learned", "num_train_timesteps": 19},
            "num_train_timesteps is 19",
        ),
        ({"class_embed_type": "identity"}, "class_embed_type"),
        ({"layers_per_block": 2}, "is missing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_configuration_that_cannot_be_used_gives_a_one_line_error(values, said, written, refused):
    change(written / "unet" / "config.json", **values)
    assert said in refused(Inference.main, "--ckpt", written)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"unet2d": "{"}, "unet2d cannot be read as JSON"),
        ({"unet2d": "[]"}, "unet2d must be an object"),
        ({"unet2d": "{}"}, "sample_size is missing"),
        ({"unet2d": 3}, "unet2d must be"),
        ({"unet2d": "x" * 10**5}, "unet2d must be"),
        ({"depth": 1}, "unet2d describes a network for other images"),
        ({"size": 16}, "unet2d describes a network for other images"),
        ({"classes": 2, "class_names": ("a", "b")}, "unet2d describes a network for other images"),
    ],
)
def test_a_checkpoint_with_a_wrong_network_is_refused(values, said, written, tmp_path, refused):
    model, file = load_model(written).model, tmp_path / "model.safetensors"
    settings = json.dumps(dict(model.hparams) | values)
    save_file(model.unet.state_dict(), file, {"settings": settings})
    assert said in refused(Inference.main, "--ckpt", file)
