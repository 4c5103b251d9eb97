"""Other formats: the model computes the same, converts back bit for bit, or is refused."""

import inspect
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import convert
import Inference
from checkpoints import diffusers_scheduler, diffusers_unet
from checkpoints.checkpoint import load_model
from checkpoints.checkpoint_file import sha256_of
from checkpoints.diffusers_format import WEIGHTS, write_pipeline
from checkpoints.diffusers_weights import to_diffusers
from checkpoints.loaded_model import LoadedModel
from checkpoints.safetensors_format import write_model
from diffusion.settings import ModelSettings
from DiffusionModel import DiffusionModel
from sampling.guidance import Guided
from sampling.samplers import ddpm

SMALL = {
    "T": 20,
    "beta_large": 0.4,
    "depth": 1,
    "width": 6,
    "mults": (1, 1, 1),
    "attention": (4,),
    "blocks": 1,
    "size": 8,
}
PUBLISHED = {  # config.json and scheduler_config.json of google/ddpm-cifar10-32
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": (128, 256, 256, 256),
    "center_input_sample": False,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}


def model(**settings) -> DiffusionModel:
    """A small network that can be converted to diffusers: all normalizations have one group.

    Every weight gets a value, because layers that start at zero would hide mistakes.
    """
    made = DiffusionModel(**{**SMALL, **settings})
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn(p.shape, generator=random) * 0.1)
    return made.eval().requires_grad_(False)


def loaded_from(made: DiffusionModel) -> LoadedModel:
    return LoadedModel(made, Path("x.ckpt"), "", step=0, trained_on="")


def pipeline(folder: Path):
    import diffusers

    loaded = diffusers.DDPMPipeline.from_pretrained(str(folder))
    loaded.set_progress_bar_config(disable=True)
    return loaded


def change(file: Path, **values) -> None:
    """Change values in a JSON file; a name whose value is Ellipsis is removed."""
    contents = json.loads(file.read_text()) | values
    file.write_text(
        json.dumps({name: value for name, value in contents.items() if value is not ...})
    )


@pytest.fixture
def written(tmp_path):
    """A pipeline of the small model."""
    write_pipeline(loaded_from(model()), tmp_path / "pipe", "ema")
    return tmp_path / "pipe"


# ---- diffusers ----------------------------------------------------------------------------------


def test_default_configurations_are_those_of_diffusers():
    from diffusers import DDPMScheduler, UNet2DModel

    for ours, theirs in (
        (diffusers_unet.DEFAULTS, UNet2DModel),
        (diffusers_scheduler.DEFAULTS, DDPMScheduler),
    ):
        assert ours == {
            name: p.default
            for name, p in inspect.signature(theirs.__init__).parameters.items()
            if name != "self"
        }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"variance": "small", "schedule": "cosine", "parameterization": "v"},
        {"variance": "learned", "film": True},
        {"schedule": "sigmoid", "parameterization": "x0", "depth": 3},
        {"zero_terminal_snr": True, "parameterization": "v"},
        {"betas": tuple(np.linspace(0.01, 0.5, 20).tolist()), "blocks": 2, "attention": ()},
        {"augment": 0.1, "attention": (8,)},
        {"size": (8, 12)},
        {"size": (16, 8)},
    ],
    ids=lambda settings: ",".join(settings) or "paper",
)
def test_a_pipeline_samples_the_same_images_and_comes_back_bitwise(settings, tmp_path):
    """Algorithm 2 with the same noise, by diffusers' pipeline and by ours, in 20 and 5 steps."""
    ours = model(**settings)
    write_pipeline(loaded_from(ours), tmp_path, "ema")
    theirs, shape = pipeline(tmp_path), (3, *ours.unet.shape)
    for steps in (20, 5):
        found = theirs(
            batch_size=3,
            generator=torch.Generator().manual_seed(3),
            num_inference_steps=steps,
            output_type="np",
        ).images
        random = torch.Generator().manual_seed(3)
        noise = lambda: torch.randn(shape, generator=random)  # noqa: E731, B023
        times = [int(t) + 1 for t in theirs.scheduler.timesteps]
        assert len(times) == steps
        assert (times[0], times[-1]) == (20, 1)
        *_, (_, x, _) = ddpm(Guided(ours), noise(), [*times, 0], noise, ours.variance)
        expected = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        assert np.abs(found - expected).max() <= 1e-4
        assert ((expected > 0.001) & (expected < 0.999)).mean() > 0.2  # pixels that are not clipped
    back = load_model(tmp_path).model
    mine = {name: value for name, value in ours.state_dict().items() if "augmentation" not in name}
    assert back.state_dict().keys() == mine.keys()
    assert all(torch.equal(value, mine[name]) for name, value in back.state_dict().items())
    assert back.schedule == ours.schedule
    differ = {name for name in ours.hparams if back.hparams[name] != ours.hparams[name]}
    assert differ <= {
        "augment",
        "augmentations",
        *(["schedule", "betas"] if settings.get("schedule") == "sigmoid" else []),
    }


def test_the_published_network_is_the_papers():
    """Its configurations. Its output is compared in test_unet.py, with random weights."""
    settings = diffusers_unet.unet_settings(PUBLISHED, ())
    others = {"class_names": (), "unet2d": ""}
    assert {**settings, "attention": (16,)} == {**ModelSettings().network, **others}
    config = diffusers_unet.unet_config(settings)
    assert {name: config[name] for name in PUBLISHED if name[0] != "_"} == {
        k: v for k, v in PUBLISHED.items() if k[0] != "_"
    }
    schedule = diffusers_scheduler.scheduler_settings(SCHEDULER)
    assert schedule == {name: getattr(ModelSettings(), name) for name in schedule}


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_a_folder_as_it_was_once_published_is_read(ending, tmp_path):
    """All files at the root, few settings, old names in attention, both formats of weights."""
    ours = model(T=1000, beta_large=0.02, depth=3, mults=(1, 1, 1), blocks=2)
    weights = to_diffusers(ours.unet.state_dict(), 3, 2)
    for new, old in (
        ("to_q", "query"),
        ("to_k", "key"),
        ("to_v", "value"),
        ("to_out.0", "proj_attn"),
    ):
        weights = {name.replace(f".{new}.", f".{old}."): value for name, value in weights.items()}
    assert any("mid_block.attentions.0.proj_attn.bias" in name for name in weights)
    file = tmp_path / f"diffusion_pytorch_model.{ending}"
    torch.save(weights, file) if ending == "bin" else save_file(weights, file)
    (tmp_path / "config.json").write_text(
        json.dumps(
            PUBLISHED
            | {
                "block_out_channels": (6, 6, 6),
                "norm_num_groups": 1,
                "sample_size": 8,
                "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            }
        )
    )
    (tmp_path / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    back = load_model(tmp_path).model
    assert all(
        torch.equal(a, b) for a, b in zip(back.state_dict().values(), ours.state_dict().values())
    )
    assert (
        Inference.main(
            [
                "--ckpt",
                str(tmp_path),
                "--steps",
                "2",
                "--num",
                "2",
                "--out",
                str(tmp_path / "out"),
                "--device",
                "cpu",
            ]
        )
        == 0
    )


def test_all_labels_of_a_foreign_network_are_classes(tmp_path):
    """Its embedding has a row for each class. Loading adds an unused one for "no class"."""
    ours = model(classes=3, class_names=("a", "b", "c"))
    write_pipeline(loaded_from(ours), tmp_path / "own", "ema")
    own = load_model(tmp_path / "own").model
    assert own.hparams["class_names"] == ("a", "b", "c")
    assert own.hparams["label_dropout"] == 0.1
    assert torch.equal(own.unet.label.weight, ours.unet.label.weight)
    theirs, x, t, y = (
        pipeline(tmp_path / "own"),
        torch.randn(4, 1, 8, 8),
        torch.tensor([1, 5, 9, 20]),
        torch.tensor([0, 1, 2, 3]),
    )
    with torch.no_grad():
        assert (theirs.unet(x, t - 1, class_labels=y).sample - ours(x, t, y)).abs().max() <= 1e-4
    file = tmp_path / "own" / "unet" / WEIGHTS[0]
    save_file(load_file(file), file)  # without our header
    other = load_model(tmp_path / "own").model
    assert other.hparams["class_names"] == ("0", "1", "2", "3")
    assert other.hparams["label_dropout"] == 0
    assert torch.equal(other(x, t, y), ours(x, t, y))


def test_one_class_is_a_pipeline_that_needs_no_label(tmp_path, refused, capsys):
    ours, x, t = (
        model(classes=2, class_names=("dark", "bright")),
        torch.randn(2, 1, 8, 8),
        torch.tensor([3, 20]),
    )
    source = tmp_path / "model.safetensors"
    write_model(loaded_from(ours), source, "ema")
    assert (
        convert.main(["--ckpt", str(source), "--to", "diffusers", "--out", str(tmp_path / "all")])
        == 0
    )
    assert "class_labels (2 for no class)" in capsys.readouterr().out
    for text, label in (("Bright", 1), ("0", 0), ("none", 2)):
        assert (
            convert.main(
                [
                    "--ckpt",
                    str(source),
                    "--to",
                    "diffusers",
                    "--out",
                    str(tmp_path / "one"),
                    "--class",
                    text,
                ]
            )
            == 0
        )
        with torch.no_grad():
            found = pipeline(tmp_path / "one").unet(x, t - 1).sample
        assert (found - ours(x, t, torch.full((2,), label))).abs().max() <= 1e-4
    line = refused(
        convert.main,
        "--ckpt",
        source,
        "--to",
        "diffusers",
        "--out",
        tmp_path / "x",
        "--class",
        "bricht",
    )
    assert "did you mean bright? Give dark, bright, none, or a number from 0 to 1" in line
    line = refused(
        convert.main,
        "--ckpt",
        tmp_path / "one",
        "--to",
        "onnx",
        "--out",
        tmp_path / "x.onnx",
        "--class",
        "0",
    )
    assert "has no classes" in line


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention_head_dim", "x"),
        ("norm_num_groups", 0),
        ("norm_eps", -1),
        ("freq_shift", 2),
        ("flip_sin_to_cos", 1),
        ("downsample_padding", -1),
        ("act_fn", "gelu_new"),
        ("add_attention", "no"),
        ("up_block_types", ["UpBlock2D"] * 2),
        ("up_block_types", [["UpBlock2D"]] * 3),
        ("down_block_types", ["CrossAttnDownBlock2D"] * 3),
        ("time_embedding_type", "fourier"),
        ("resnet_time_scale_shift", "spatial"),
        ("attn_norm_num_groups", 0),
        ("out_channels", 7),
        ("out_channels", 2),
        ("sample_size", None),
        ("sample_size", 7),
        ("sample_size", [8, 7]),
        ("sample_size", [8, 8, 8]),
        ("sample_size", [8, "8"]),
        ("sample_size", [8, 4096]),
        ("block_out_channels", [2, 6, 6]),
        ("block_out_channels", [6, 10**9, 6]),
        ("block_out_channels", [6] * 40),
        ("in_channels", 10**9),
        ("layers_per_block", 10**9),
        ("dropout", "x"),
        ("time_embedding_dim", 0),
        ("a_new_setting", 1),
        ("class_embed_type", "timestep"),
        ("num_class_embeds", -1),
        ("mid_block_type", "UNetMidBlock2DCrossAttn"),
        ("center_input_sample", None),
    ],
)
def test_the_refusal_of_an_unsupported_network_names_the_setting(name, value, written, refused):
    change(written / "unet" / "config.json", **{name: value})
    line = refused(Inference.main, "--ckpt", written)
    assert name in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_class_name", "PNDMScheduler"),
        ("beta_schedule", "exp"),
        ("prediction_type", "flow"),
        ("variance_type", "learned"),
        ("variance_type", "fixed_large_log"),
        ("variance_type", "learned_range"),
        ("thresholding", True),
        ("clip_sample", False),
        ("clip_sample_range", 2.0),
        ("trained_betas", [0.1, 0.2]),
        ("trained_betas", 3),
        ("num_train_timesteps", 0),
        ("num_train_timesteps", "x"),
        ("beta_end", 5),
        ("rescale_betas_zero_snr", True),
    ],
)
def test_a_scheduler_that_is_not_supported_is_refused(name, value, written, refused):
    change(written / "scheduler" / "scheduler_config.json", **{name: value})
    line = refused(Inference.main, "--ckpt", written)
    said = {
        "trained_betas": "",
        "num_train_timesteps": "T must",
        "beta_end": "beta_large",
        "rescale_betas_zero_snr": "parameterization",
    }
    assert said.get(name, name) in line


def test_scaled_linear_betas_become_a_table(written):
    from diffusers import DDPMScheduler

    change(
        written / "scheduler" / "scheduler_config.json",
        beta_schedule="scaled_linear",
        _class_name="DDIMScheduler",
        variance_type=...,
    )
    read = load_model(written).model
    expected = DDPMScheduler(20, 1e-4, 0.4, "scaled_linear").alphas_cumprod
    assert np.allclose(read.schedule["alpha_bar"][1:], expected, rtol=1e-5)
    assert read.variance == "small"


def spoil(folder: Path, how: str) -> str:
    """Damage a pipeline; returns a part of the expected error message."""
    weights = folder / "unet" / WEIGHTS[0]
    tensors = load_file(weights)
    first = next(iter(tensors))
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-7])
        return "damaged"
    if how == "json":
        (folder / "unet" / "config.json").write_text("{")
        return "unet/config.json: it cannot be read as JSON"
    if how == "deep json":
        (folder / "unet" / "config.json").write_text("[" * 10**5)
        return "RecursionError"
    if how in (
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "model_index.json",
        f"unet/{weights.name}",
    ):
        (folder / how).unlink()
        return f"{how} is missing"
    if how == "shape":
        save_file(tensors | {first: torch.zeros(3)}, weights)
        return "must be float32"
    if how == "nan":
        save_file(tensors | {first: tensors[first] * torch.nan}, weights)
        return "not finite"
    if how == "missing":
        save_file({name: value for name, value in tensors.items() if "to_v" not in name}, weights)
        return "unexpected contents"
    if how == "surplus":
        save_file(tensors | {"x.weight": torch.zeros(3)}, weights)
        return "'unet.x.weight' is unknown"
    weights.unlink()
    if how == "claims":  # a few bytes that claim to be a large tensor
        torch.save({"a": torch.zeros(1).expand(10**12)}, weights.with_suffix(".bin"))
        return "plain tensors"
    torch.save({"a": Spy()}, weights.with_suffix(".bin"))
    return "damaged"


class Spy:
    ran = False

    def __reduce__(self):
        return setattr, (Spy, "ran", True)


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "json",
        "deep json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "model_index.json",
        f"unet/{WEIGHTS[0]}",
        "shape",
        "nan",
        "missing",
        "surplus",
        "claims",
        "code",
    ],
)
def test_a_damaged_or_hostile_folder_gives_a_one_line_error(how, written, refused):
    said = spoil(written, how)
    assert said in refused(Inference.main, "--ckpt", written)
    assert not Spy.ran


def test_actions_that_need_a_checkpoint_of_training_are_refused(written, refused, tmp_path):
    import evaluate
    import train

    assert "leave out --weights raw" in refused(
        Inference.main, "--ckpt", written, "--weights", "raw"
    )
    assert "--ema-length" in refused(Inference.main, "--ckpt", written, "--ema-length", "0.1")
    assert "give --dataset" in refused(
        evaluate.main, "--ckpt", written, "--num", "4", "--device", "cpu"
    )
    line = refused(
        train.main,
        "--dataset",
        "shapes",
        "--resume",
        written,
        "--run-dir",
        tmp_path / "run",
        "--preset",
        "paper",
        "--width",
        "4",
        "--mults",
        "1",
        "--attention",
        "",
        "--blocks",
        "1",
        "--image-size",
        "8",
        "--device",
        "cpu",
    )
    assert "holds only weights" in line


@pytest.mark.parametrize("settings", [{"width": 8}, {"patch": 2}])
def test_a_network_that_diffusers_cannot_have_is_refused_and_leaves_nothing(
    settings, tmp_path, refused
):
    source = tmp_path / "model.safetensors"
    write_model(loaded_from(model(**settings)), source, "ema")
    line = refused(convert.main, "--ckpt", source, "--to", "diffusers", "--out", tmp_path / "pipe")
    assert ("norm_num_groups" if "width" in settings else "patches of 2x2") in line
    assert "choose safetensors or ONNX" in line
    assert not (tmp_path / "pipe").exists()


def test_outputs_that_are_in_the_way_are_refused(written, refused, tmp_path):
    assert ".onnx file" in refused(
        convert.main, "--ckpt", written, "--to", "onnx", "--out", tmp_path / "x.safetensors"
    )
    assert "a folder" in refused(
        convert.main, "--ckpt", written, "--to", "diffusers", "--out", tmp_path / "x.onnx"
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    assert "is not a DDPMPipeline" in refused(
        convert.main, "--ckpt", written, "--to", "diffusers", "--out", tmp_path / "other"
    )
    (tmp_path / "x.safetensors").mkdir()
    assert "is a folder" in refused(
        convert.main, "--ckpt", written, "--to", "safetensors", "--out", tmp_path / "x.safetensors"
    )
    (tmp_path / "file").touch()
    line = refused(
        convert.main,
        "--ckpt",
        written,
        "--to",
        "safetensors",
        "--out",
        tmp_path / "file" / "x.safetensors",
    )
    assert f"cannot write {tmp_path}" in line
    assert "tmp." not in line
    assert "no checkpoint at" in refused(
        convert.main,
        "--ckpt",
        "google/ddpm-cifar10-32",
        "--to",
        "onnx",
        "--out",
        tmp_path / "x.onnx",
    )


# ---- safetensors and ONNX -----------------------------------------------------------------------


def test_a_checkpoint_becomes_safetensors_that_sample_the_same(
    conditional_run, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    found = {}
    for kind, flags in {
        "ema": [],
        "raw": ["--weights", "raw"],
        "length": ["--ema-length", "0.1"],
    }.items():
        file = tmp_path / f"{kind}.safetensors"
        assert (
            convert.main(
                ["--ckpt", str(conditional_run), "--to", "safetensors", "--out", str(file), *flags]
            )
            == 0
        )
        found[kind] = load_model(file)
        expected = load_model(
            conditional_run, "cpu", kind != "raw", 0.1 if kind == "length" else None
        )
        assert found[kind].model.hparams == expected.model.hparams
        written, original = found[kind].model.state_dict(), expected.model.state_dict()
        assert written.keys() == original.keys()
        assert all(torch.equal(written[name], original[name]) for name in written)
        assert (found[kind].step, found[kind].trained_on) == (12, expected.trained_on)
        assert found[kind].sha256 == sha256_of(file)
    assert len({float(one.model.unet.conv_out.weight.sum()) for one in found.values()}) == 3
    for source, out in ((conditional_run, "a"), (tmp_path / "ema.safetensors", "b")):
        flags = ["--class", "all", "--num", "1", "--steps", "3", "--device", "cpu"]
        assert Inference.main(["--ckpt", str(source), "--out", str(tmp_path / out), *flags]) == 0
    assert (tmp_path / "a" / "samples.npz").read_bytes() == (
        tmp_path / "b" / "samples.npz"
    ).read_bytes()


def test_a_model_is_always_the_same_file(tmp_path):
    """safetensors itself writes the metadata in a random order."""
    files = [tmp_path / f"{i}.safetensors" for i in range(12)]
    loaded = loaded_from(model(class_names=("é", "猫")))
    for file in files:
        write_model(loaded, file, "ema")
    assert len({sha256_of(file) for file in files}) == 1
    assert (8 + int.from_bytes(files[0].read_bytes()[:8], "little")) % 8 == 0
    assert load_file(files[0]).keys() == loaded.model.unet.state_dict().keys()


def test_safetensors_without_or_with_wrong_settings_are_refused(tmp_path, refused):
    ours, file = model(), tmp_path / "model.safetensors"
    save_file(ours.unet.state_dict(), file)
    assert "does not say what network" in refused(Inference.main, "--ckpt", file)
    for settings, said in (
        ("{", "JSON"),
        ("[]", "object"),
        (json.dumps({**ours.hparams, "width": 10**9}), "width"),
        (json.dumps({**ours.hparams, "blocks": 2}), "weight 'unet."),
        ('{"T": NaN}', "T must be"),
        ('{"x": 1}', "unknown setting"),
    ):
        save_file(ours.unet.state_dict(), file, {"settings": settings})
        assert said in refused(Inference.main, "--ckpt", file)


@pytest.mark.parametrize(
    "settings",
    [
        {"classes": 2, "class_names": ("a", "b"), "patch": 2, "width": 8, "mults": (1,)},
        pytest.param({"variance": "learned", "film": True, "mults": (1,)}, marks=pytest.mark.slow),
    ],
)
def test_onnxruntime_computes_the_same_for_any_number_of_images(settings, tmp_path, capsys):
    import onnx
    import onnxruntime

    ours, file = model(**settings), tmp_path / "model.onnx"
    write_model(loaded_from(ours), tmp_path / "model.safetensors", "ema")
    assert (
        convert.main(
            ["--ckpt", str(tmp_path / "model.safetensors"), "--to", "onnx", "--out", str(file)]
        )
        == 0
    )
    assert "in onnxruntime it is off by" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for B in (1, 4):
        x, t, y = (
            torch.randn(B, 1, 8, 8),
            torch.tensor([20, 1, 7, 13])[:B],
            torch.tensor([2, 0, 1, 1])[:B],
        )
        given = {"x": x, "t": t} | ({"y": y} if ours.unet.classes else {})
        found = torch.from_numpy(
            session.run(["output"], {name: value.numpy() for name, value in given.items()})[0]
        )
        assert (found - ours(*given.values())).abs().max() <= 1e-4
    said = {p.key: p.value for p in onnx.load(file).metadata_props}
    assert "from 1 (hardly noised) to 20" in said["inputs"]
    assert json.loads(said["settings"])["T"] == 20


@pytest.mark.slow
def test_an_onnx_file_that_is_off_or_cannot_be_made_does_not_appear(tmp_path, refused, monkeypatch):
    source, out = tmp_path / "model.safetensors", tmp_path / "x.onnx"
    write_model(loaded_from(model(mults=(1,))), source, "ema")
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: None)
    assert "pip install onnx onnxscript" in refused(
        convert.main, "--ckpt", source, "--to", "onnx", "--out", out
    )
    monkeypatch.undo()
    whole = torch.onnx.export

    def export(exported, *args, **options):
        program = whole(exported, *args, **options)
        exported.unet.conv_out.bias = torch.nn.Parameter(exported.unet.conv_out.bias + 0.01)
        return program

    monkeypatch.setattr(torch.onnx, "export", export)
    assert "is off by" in refused(convert.main, "--ckpt", source, "--to", "onnx", "--out", out)
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: 1 / 0)
    assert "cannot be exported (ZeroDivisionError" in refused(
        convert.main, "--ckpt", source, "--to", "onnx", "--out", out
    )
    assert sorted(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    "lost", ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]
)
def test_an_interrupted_pipeline_is_written_again(written, tmp_path, lost):
    out = tmp_path / "again"
    for again in (False, True):
        assert convert.main(["--ckpt", str(written), "--to", "diffusers", "--out", str(out)]) == 0
        assert (out / lost).is_file()
        if not again:
            (out / lost).unlink()
            (out / "model_index.json").unlink(missing_ok=True)
            (out / "unet" / "config.json.tmp.1").touch()
