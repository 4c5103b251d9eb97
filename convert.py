# PYTHON_ARGCOMPLETE_OK
"""Convert a checkpoint to diffusers, safetensors or ONNX.

    # DDPMPipeline.from_pretrained("pipeline")
    python convert.py --ckpt runs/cifar10 --to diffusers --out pipeline
    # weights, and the settings that rebuild the model
    python convert.py --ckpt runs/cifar10 --to safetensors --out model.safetensors
    # the network, for any number of images
    python convert.py --ckpt runs/cifar10 --to onnx --out model.onnx
    # one class of a class-conditional model
    python convert.py --ckpt runs/mnist --to diffusers --class 7 --out sevens

Here and in Inference.py and evaluate.py, --ckpt may also be such a .safetensors file, or the folder
of a DDPMPipeline, such as a copy of google/ddpm-cifar10-32.

In the ONNX file, as in `DiffusionModel`, t counts from 1 (almost clean) to T (pure noise).
In diffusers, and so in the unet of a pipeline, it counts from 0. Some networks cannot be converted
to diffusers: all normalizations must have the same number of groups, as they do if the channels of
each level are a multiple of 128, and --patch must be 1. The other formats have no such limit.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

from runtime import flags
from runtime.arguments import Parser
from runtime.output import protect_output
from runtime.signals import Stop

ENDINGS = {"diffusers": "", "safetensors": ".safetensors", "onnx": ".onnx"}


def build_parser() -> Parser:
    parser = Parser(__doc__, main_flag="--ckpt")
    add = parser.add_argument
    flags.add_checkpoint(
        parser,
        required=True,
        help="a checkpoint, a run directory (its newest checkpoint), a .safetensors file "
        "or a diffusers pipeline (required)",
    )
    add("--to", choices=tuple(ENDINGS), required=True, help="the format (required)")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="output file or folder; an existing one is replaced (required)",
    )
    flags.add_weights(parser)
    add(
        "--class",
        dest="label",
        metavar="CLASS",
        help="keep only this class of a model with classes: a number, a name or none (all of them)",
    )
    add(
        "--half",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="weights in half precision, for --to safetensors (no)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)  # before importing torch, so that typos fail at once
    if wrong := find_conflict(args):
        parser.error(wrong)

    from checkpoints.export import ExportSettings, export

    settings = ExportSettings(
        checkpoint=args.ckpt,
        format=args.to,
        out=args.out,
        ema=args.weights == "ema",
        ema_length=args.ema_length,
        class_name=args.label,
        half=args.half,
    )
    try:
        description = export(settings)
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except ValueError as error:
        parser.error(str(error))
    print(f"{args.out}: {description}")
    return 0


def find_conflict(args: argparse.Namespace) -> str:
    """Return what is wrong with the combination of flags, in one line, or an empty string."""
    if args.ema_length is not None and args.weights == "raw":
        return "--ema-length averages the weights: leave out --weights raw"
    if args.half and args.to != "safetensors":
        return "--half is for --to safetensors: leave it out"
    ending, suffix = ENDINGS[args.to], args.out.suffix
    if ending and suffix != ending:
        return f"--to {args.to} writes a {ending} file: choose another --out than {args.out}"
    if not ending and suffix in (".safetensors", ".onnx"):
        return f"--to {args.to} writes a folder: choose another --out than {args.out}"
    if ending and args.out.is_dir():
        return f"{args.out} is a folder: choose another --out"
    if args.to == "onnx":
        packages = ("onnx", "onnxscript")
        missing = [name for name in packages if not importlib.util.find_spec(name)]
        if missing:
            names = " and ".join(missing)
            return f"--to onnx needs {names}: pip install onnx onnxscript onnxruntime"
    return ""


if __name__ == "__main__":
    protect_output()
    # A signal ends the program at once, without half-written files; a rerun writes the same bytes.
    Stop().arm()
    sys.exit(main())
