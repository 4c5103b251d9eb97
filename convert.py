# PYTHON_ARGCOMPLETE_OK
"""A checkpoint in other people's formats.

    python convert.py --ckpt runs/cifar10 --to diffusers --out pipeline               # DDPMPipeline.from_pretrained("pipeline")
    python convert.py --ckpt runs/cifar10 --to safetensors --out model.safetensors    # weights, and all that rebuilds the model
    python convert.py --ckpt runs/cifar10 --to onnx --out model.onnx                  # the network, for any number of images
    python convert.py --ckpt runs/mnist --to diffusers --class 7 --out sevens         # a model with classes, as one of a single class

And back: --ckpt, here as in Inference.py and evaluate.py, is also such a .safetensors file, or the folder of a DDPMPipeline, as
google/ddpm-cifar10-32 and its like are published.

t in the ONNX file counts as everywhere in this project: from 1, hardly noised, to T, noise. diffusers counts from 0, and so does the
unet of a pipeline. Not every network is one of diffusers': all normalizations must have as many groups, which they have where each
level's channels are a multiple of 128, and no patches may be folded; the others go to the other two formats.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

from runtime import flags
from runtime.arguments import Parser
from runtime.signals import Stop

ENDINGS = {"diffusers": "", "safetensors": ".safetensors", "onnx": ".onnx"}


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    flags.add_checkpoint(
        parser,
        required=True,
        help="a checkpoint, a run directory for its newest, a .safetensors file, "
        "a pipeline of diffusers (required)",
    )
    add("--to", choices=tuple(ENDINGS), required=True, help="the format (required)")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="what is written; an older one is replaced (required)",
    )
    flags.add_weights(parser)
    add(
        "--class",
        dest="label",
        metavar="CLASS",
        help="of a model with classes, by number or name, or none: this one alone (all of them)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)  # before torch is imported: a typing error costs no seconds
    if wrong := contradiction(args):
        parser.error(wrong)

    from checkpoints import checkpoint, export

    weights = args.weights if args.ema_length is None else f"ema of length {args.ema_length:g}"
    try:
        if args.to == "diffusers":
            export.check_place(args.out)
        loaded = checkpoint.load_model(args.ckpt, "cpu", args.weights == "ema", args.ema_length)
        if args.label is not None:
            loaded = export.of_one_class(loaded, args.label)
        model = loaded.model
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except ValueError as error:
        parser.error(str(error))
    try:
        if args.to == "diffusers":
            export.write_pipeline(loaded, args.out, weights)
            said = "a DDPMPipeline of diffusers" + (
                "" if model.T == 1000 else f", to be called with num_inference_steps={model.T}"
            )
            if model.unet.classes:
                said += (
                    f"; its network takes class_labels ({model.unet.classes}: none), and DDPMPipeline passes none: "
                    "call the network yourself, or convert with --class for a pipeline of one"
                )
        elif args.to == "safetensors":
            export.write_safetensors(loaded, args.out, weights)
            said = f"weights and settings: python Inference.py --ckpt {args.out}"
        else:
            error = export.write_onnx(loaded, args.out, weights)
            said = (
                f"x, t{', y' if model.unet.classes else ''} -> {model.parameterization}, t from 1 to {model.T}; "
                + (
                    f"in onnxruntime it is off by {error:.1e}"
                    if error is not None
                    else "not compared: pip install onnxruntime"
                )
            )
    except OSError as error:
        parser.error(f"cannot write {args.out} ({error.strerror or error}): choose another --out")
    except ValueError as error:
        parser.error(str(error))
    print(f"{args.out}: {said}")
    return 0


def contradiction(args: argparse.Namespace) -> str:
    """What is wrong with flags that do not go together or with what is there, in one line, or nothing."""
    if args.ema_length is not None and args.weights == "raw":
        return "--ema-length averages the weights: leave out --weights raw"
    ending = ENDINGS[args.to]
    if args.out.suffix != ending if ending else args.out.suffix in (".safetensors", ".onnx"):
        return f"--to {args.to} writes {f'a {ending} file' if ending else 'a folder'}: choose another --out than {args.out}"
    if ending and args.out.is_dir():
        return f"{args.out} is a folder: choose another --out"
    if args.to == "onnx" and (
        missing := [name for name in ("onnx", "onnxscript") if not importlib.util.find_spec(name)]
    ):
        return f"--to onnx needs {' and '.join(missing)}: pip install onnx onnxscript onnxruntime"
    return ""


if __name__ == "__main__":
    Stop().arm()  # a signal ends it at once and leaves no half-written file; run again, it writes the same bytes
    sys.exit(main())
