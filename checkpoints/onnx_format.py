"""Export a network to an ONNX file, for any batch size.

    error = write_onnx(loaded, Path("model.onnx"), "ema")

Its inputs are x, t in 1..T and, for a model with classes, y, which equals the number of classes for
"no class". The metadata of the file describe the inputs.
"""

import contextlib
import importlib.util
import io
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.loaded_model import LoadedModel
from checkpoints.safetensors_format import describe
from DiffusionModel import DiffusionModel
from runtime.atomic_file import complete_file

TOLERANCE = 1e-4  # largest result of `compare_with_onnxruntime` that is accepted


def write_onnx(loaded: LoadedModel, file: Path, weights: str) -> float | None:
    """Export `DiffusionModel.forward`. weights: a description such as "ema".

    If onnxruntime is installed, its output is compared with torch's, and the difference is
    returned; otherwise None is returned. Raises ValueError, without writing a file, if they differ
    by more than `TOLERANCE` or the network cannot be exported, and OSError if the file cannot be
    written.
    """
    model = loaded.model.cpu()
    try:
        with complete_file(file) as temporary:
            save_onnx(model, metadata(loaded, weights), temporary)
            if not importlib.util.find_spec("onnxruntime"):
                return None
            error = compare_with_onnxruntime(model, temporary)
            if not error <= TOLERANCE:
                raise ArithmeticError(f"onnxruntime's output is off by {error:.1e}")
            return error
    except OSError:
        raise
    except Exception as error:  # exporters raise many types, with messages of many lines
        reason = " ".join(str(error).split())[:100]
        raise ValueError(
            f"this network cannot be exported ({type(error).__name__}: {reason}): other "
            "versions of torch, onnxscript and onnxruntime may do it"
        ) from None


def save_onnx(model: DiffusionModel, properties: dict[str, str], file: Path) -> None:
    """Export the model to a file with these properties in its metadata."""
    import onnx

    batch, inputs = torch.export.Dim("B", min=1), example_inputs(model, 2)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are meant for developers of torch
        program = torch.onnx.export(
            model,
            tuple(inputs.values()),
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=[*inputs],
            output_names=["output"],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, properties)
    onnx.save(proto, file)
    onnx.checker.check_model(file)


def example_inputs(model: DiffusionModel, count: int) -> dict[str, Tensor]:
    """Random inputs of the network for this many images, by name."""
    net, random = model.unet, torch.Generator().manual_seed(count)
    inputs = {
        "x": torch.randn(count, *net.shape, generator=random),
        "t": torch.randint(1, model.T + 1, (count,), generator=random),
    }
    if net.classes:
        inputs["y"] = torch.arange(count) % (net.classes + 1)
    return inputs


def metadata(loaded: LoadedModel, weights: str) -> dict[str, str]:
    """The metadata of the file: its inputs, its output, the schedule and the settings."""
    model = loaded.model
    inputs = (
        "x: x_t, pixels in [-1, 1] at t = 0; "
        f"t: from 1 (hardly noised) to {model.T} (noise), never 0"
    )
    if model.unet.classes:
        inputs += f"; y: a class, from 0, or {model.unet.classes} for none"
    output = model.settings.parameterization
    if model.settings.variance == "learned":
        output += (
            ", then v in [-1, 1]: the log variance is (1 + v) / 2 log(beta_t) + "
            "(1 - v) / 2 log(variance of the posterior)"
        )
    return {
        "inputs": inputs,
        "output": output,
        "alpha_bar": json.dumps(model.schedule["alpha_bar"]),
        "settings": json.dumps(dict(model.hparams)),
        "about": describe(loaded, weights),
    }


def compare_with_onnxruntime(model: DiffusionModel, file: Path) -> float:
    """The largest difference from torch's output, divided by the larger of 1 and that output's
    largest value."""
    import onnxruntime

    inputs = example_inputs(model, 3)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    arrays = {name: value.numpy() for name, value in inputs.items()}
    output = torch.from_numpy(session.run(None, arrays)[0])
    with torch.no_grad():
        expected = model(*inputs.values())
    return float((output - expected).abs().max() / expected.abs().max().clamp(min=1))
