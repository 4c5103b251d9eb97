# PYTHON_ARGCOMPLETE_OK
"""Make a GIF, MP4 or WebP animation from a trajectory of Inference.py.

    python make_gif.py samples/trajectory.npz --out denoise.gif --fps 15 --columns 4
    python make_gif.py samples/trajectory.npz --out denoise.mp4   # smaller, for players and slides
    python make_gif.py samples/trajectory.npz --out denoise.webp  # keeps every colour exactly
"""  # fmt: skip

import argparse
import re
import sys
from pathlib import Path

from runtime.arguments import Parser, whole
from runtime.output import protect_output
from runtime.signals import Stop

SUFFIXES = (".gif", ".mp4", ".webp")


def positive(text: str) -> float:
    """Read a number above 0."""
    if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", text) or float(text) <= 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, not {text!r}")
    return float(text)


def animation(text: str) -> Path:
    """Read the path of an animation."""
    if Path(text).suffix.lower() not in SUFFIXES:
        raise argparse.ArgumentTypeError(
            f"expected a file that ends in {', '.join(SUFFIXES)}, not {text!r}"
        )
    return Path(text)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("trajectory", type=Path, help="trajectory.npz, as Inference.py writes it")
    add(
        "--out",
        type=animation,
        default=Path("denoise.gif"),
        metavar="FILE",
        help="output file, ending in .gif, .mp4 or .webp (denoise.gif)",
    )
    add("--fps", type=positive, default=15, metavar="X", help="frames per second (15)")
    add(
        "--hold",
        type=positive,
        default=2,
        metavar="S",
        help="seconds that the last frame stays (2)",
    )
    add("--scale", type=whole(1), default=3, metavar="N", help="each pixel becomes NxN (3)")
    add(
        "--columns",
        type=whole(1),
        metavar="N",
        help="images per row (as many as in the grids that Inference.py wrote)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)

    from sampling.animation import AnimationSettings, write_animation

    settings = AnimationSettings(**vars(args))
    try:
        frames = write_animation(settings)
    except ImportError:
        parser.error("an .mp4 needs PyAV: pip install av, or choose .gif or .webp")
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(
            f"cannot write {settings.out} ({error.strerror or error}): choose another --out"
        )
    size = settings.out.stat().st_size / 2**20
    print(f"{settings.out}: {frames} frames, {size:.1f} MiB")
    return 0


if __name__ == "__main__":
    protect_output()
    # a signal ends the program at once, without half-written files; the warning of a time limit is
    # ignored
    Stop().arm(brief=True)
    sys.exit(main())
