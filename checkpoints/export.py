"""Convert a checkpoint to another format.

settings = ExportSettings(Path("runs/cifar10"), "onnx", Path("model.onnx"))
print(export(settings))
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from checkpoints.checkpoint import load_model
from checkpoints.diffusers_format import check_output_folder, write_pipeline
from checkpoints.loaded_model import LoadedModel
from checkpoints.networks import build_model, refitted
from checkpoints.onnx_format import write_onnx
from checkpoints.safetensors_format import write_model
from DiffusionModel import DiffusionModel
from runtime.suggestions import unknown

FORMATS = ("diffusers", "safetensors", "onnx")
# The bias of the time embedding and the label embedding that is added to it, in a `Unet` and in a
# `UNet2D`.
LABELS = (
    ("time.2.bias", "label.weight"),
    ("net.time_embedding.linear_2.bias", "net.class_embedding.weight"),
)


@dataclass(frozen=True)
class ExportSettings:
    """The model to convert, the format (one of `FORMATS`), and the file or (diffusers) the folder.

    ema, ema_length: the weights, as in `load_model`. class_name: the name or number of the only
    class to export, or "none"; None exports all. half: write half precision, for "safetensors".
    """

    checkpoint: Path
    format: str
    out: Path
    ema: bool = True
    ema_length: float | None = None
    class_name: str | None = None
    half: bool = False

    @property
    def weights(self) -> str:
        """A description of the exported weights."""
        if self.ema_length is not None:
            return f"ema of length {self.ema_length:g}"
        return "ema" if self.ema else "raw"


def export(settings: ExportSettings) -> str:
    """Convert a checkpoint and return a one-line description of the result.

    Raises OSError if the checkpoint cannot be read, and ValueError for all other errors, with a
    one-line message.
    """
    if settings.format == "diffusers":
        check_output_folder(settings.out)
    loaded = load_model(settings.checkpoint, "cpu", settings.ema, settings.ema_length)
    condition = loaded.model.settings.condition
    if condition and settings.format != "safetensors":
        raise ValueError(
            f"--to {settings.format} cannot express an image-conditional model ({condition}): "
            "give --to safetensors"
        )
    if settings.class_name is not None:
        loaded = with_one_class(loaded, settings.class_name)
    write = {"diffusers": write_diffusers, "safetensors": write_safetensors, "onnx": write_network}
    try:
        return write[settings.format](loaded, settings)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write {settings.out} ({reason}): choose another --out") from None


def write_diffusers(loaded: LoadedModel, settings: ExportSettings) -> str:
    model = loaded.model
    write_pipeline(loaded, settings.out, settings.weights)
    description = "a DDPMPipeline of diffusers"
    if model.T != 1000:
        description += f", to be called with num_inference_steps={model.T}"
    if model.unet.classes:
        description += (
            f"; its network needs class_labels ({model.unet.classes} for no class), which "
            "DDPMPipeline does not pass: call the network yourself, or convert with --class for a "
            "pipeline of one class"
        )
    return description


def write_safetensors(loaded: LoadedModel, settings: ExportSettings) -> str:
    write_model(loaded, settings.out, settings.weights, settings.half)
    return f"weights and settings: python Inference.py --ckpt {settings.out}"


def write_network(loaded: LoadedModel, settings: ExportSettings) -> str:
    model = loaded.model
    error = write_onnx(loaded, settings.out, settings.weights)
    inputs = "x, t, y" if model.unet.classes else "x, t"
    compared = "not compared: pip install onnxruntime"
    if error is not None:
        compared = f"in onnxruntime it is off by {error:.1e}"
    return f"{inputs} -> {model.settings.parameterization}, t from 1 to {model.T}; {compared}"


def with_one_class(loaded: LoadedModel, name: str) -> LoadedModel:
    """Convert a model with classes to a model without classes, which generates one of them.

    name: the class, by name or number, or "none". Raises ValueError for an unknown one.
    """
    model, network = loaded.model, loaded.model.unet.state_dict()
    if not model.unet.classes:
        raise ValueError("this model has no classes: leave out --class")
    label = find_label(model, name)
    early = loaded.early
    if early:
        early = replace(early, weights=fold_label(early.weights, label))
    network = fold_label(network, label)
    single = build_model(asdict(refitted(replace(model.settings, classes=0, class_names=()))))
    single.unet.load_state_dict(network)
    return replace(loaded, model=single.eval().requires_grad_(False), early=early)


def fold_label(weights: dict[str, Tensor], label: int) -> dict[str, Tensor]:
    """The weights of a network without labels that computes what this one does for `label`."""
    folded = dict(weights)
    for bias, embedding in LABELS:
        if embedding in weights:
            folded[bias] = weights[bias] + folded.pop(embedding)[label]
    return folded


def find_label(model: DiffusionModel, name: str) -> int:
    """The label of a class given by name or number. For "none" it is the number of classes."""
    names, classes = [*model.settings.class_names], model.unet.classes
    if model.settings.label_dropout:
        names.append("none")
    lower_names = [known.lower() for known in names]
    if name.lower() in lower_names:
        return lower_names.index(name.lower())
    if name.isdecimal() and int(name) < classes:
        return int(name)
    choices = f", or a number from 0 to {classes - 1}"
    raise ValueError(unknown("class", name, names[:20], choices))
