# PYTHON_ARGCOMPLETE_OK
"""A checkpoint in other people's formats.

    # DDPMPipeline.from_pretrained("pipeline")
    python convert.py --ckpt runs/cifar10 --to diffusers --out pipeline
    # weights, and all that rebuilds the model
    python convert.py --ckpt runs/cifar10 --to safetensors --out model.safetensors
    # the network, for any number of images
    python convert.py --ckpt runs/cifar10 --to onnx --out model.onnx
    # a model with classes, as one of a single class
    python convert.py --ckpt runs/mnist --to diffusers --class 7 --out sevens

And back: --ckpt, here as in Inference.py and evaluate.py, is also such a .safetensors file, or the
folder of a DDPMPipeline, as google/ddpm-cifar10-32 and its like are published.

t in the ONNX file counts as everywhere in this project: from 1, hardly noised, to T, noise.
diffusers counts from 0, and so does the unet of a pipeline. Not every network is one of diffusers':
all normalizations must have as many groups, which they have where each level's channels are a
multiple of 128, and no patches may be folded; the others go to the other two formats.
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
    add(
        "--half",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="weights in half precision, for --to safetensors (no)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)  # before torch is imported: a typing error costs no seconds
    if wrong := contradiction(args):
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


def contradiction(args: argparse.Namespace) -> str:
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
    # A signal ends it at once and leaves no half-written file; run again, it writes the same bytes.
    Stop().arm()
    sys.exit(main())
