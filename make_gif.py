"""A trajectory of Inference.py as a GIF.

    python make_gif.py samples/trajectory.npz --out denoise.gif --fps 15 --columns 4
"""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from Arguments import whole

if TYPE_CHECKING:
    import numpy as np


def positive(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) <= 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, not {text!r}")
    return float(text)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, allow_abbrev=False, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("trajectory", type=Path, help="trajectory.npz: frames uint8 (F,N,H,W,C), times (F,)")
    add("--out", type=Path, default=Path("denoise.gif"), metavar="FILE", help="(denoise.gif)")
    add("--fps", type=positive, default=15, metavar="X", help="frames a second (15)")
    add("--hold", type=positive, default=2, metavar="S", help="seconds that the last frame stays (2)")
    add("--scale", type=whole(1), default=3, metavar="N", help="each pixel becomes NxN (3)")
    add("--columns", type=whole(1), metavar="N", help="images a row (as wide as high)")
    return parser


def picture(images: "np.ndarray", t: int, columns: int, scale: int) -> "np.ndarray":
    """uint8 (N,H,W,C) -> one frame (rows, columns, 3) with a caption below; pixel values stay as they are."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont
    N, H, W, _ = images.shape
    rows, gap, caption = -(-N // columns), 2, 22
    canvas = Image.new("RGB", (columns * (W * scale + gap) + gap, rows * (H * scale + gap) + gap + caption), "black")
    for i, image in enumerate(np.broadcast_to(images, (N, H, W, 3))):
        tile = Image.fromarray(np.ascontiguousarray(image)).resize((W * scale, H * scale), Image.Resampling.NEAREST)
        canvas.paste(tile, (gap + i % columns * (W * scale + gap), gap + i // columns * (H * scale + gap)))
    ImageDraw.Draw(canvas).text((gap + 2, canvas.height - caption + 2), f"t = {t}", "white", ImageFont.load_default(14))
    return np.asarray(canvas)


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.out.suffix.lower() != ".gif":
        parser.error(f"--out {args.out} must end in .gif")
    import imageio.v3 as imageio

    import Trajectory
    from CompleteFile import complete_file
    try:
        trajectory = Trajectory.read(args.trajectory)
        frames, times = trajectory["frames"], trajectory["times"]
        columns = min(args.columns or int(trajectory["columns"]) or round(frames.shape[1] ** 0.5), frames.shape[1])
        pictures = [picture(images, int(t), columns, args.scale) for images, t in zip(frames, times)]
        durations: Any = [1000 / args.fps] * (len(pictures) - 1) + [1000 * args.hold]
        with complete_file(args.out) as temporary:
            imageio.imwrite(temporary, pictures, plugin="pillow", duration=durations, loop=0)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot write {args.out} ({error.strerror}): choose another --out")
    print(f"{args.out}: {len(pictures)} frames, {args.out.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nmake_gif.py: interrupted", file=sys.stderr)
        sys.exit(130)
