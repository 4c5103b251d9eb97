# PYTHON_ARGCOMPLETE_OK
"""A trajectory of Inference.py as a GIF, an MP4 or a WebP animation.

    python make_gif.py samples/trajectory.npz --out denoise.gif --fps 15 --columns 4
    python make_gif.py samples/trajectory.npz --out denoise.mp4   # smaller, for players and slides
    python make_gif.py samples/trajectory.npz --out denoise.webp  # every colour as it is
"""  # fmt: skip

import argparse
import re
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.arguments import Parser, whole
from runtime.signals import Stop

if TYPE_CHECKING:
    import numpy as np

KINDS = (".gif", ".mp4", ".webp")


def positive(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) <= 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, not {text!r}")
    return float(text)


def animation(text: str) -> Path:
    if Path(text).suffix.lower() not in KINDS:
        raise argparse.ArgumentTypeError(
            f"expected a file that ends in {', '.join(KINDS)}, not {text!r}"
        )
    return Path(text)


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("trajectory", type=Path, help="trajectory.npz: frames uint8 (F,N,H,W,C), times (F,)")
    add(
        "--out",
        type=animation,
        default=Path("denoise.gif"),
        metavar="FILE",
        help="what ends in .gif, .mp4 or .webp (denoise.gif)",
    )
    add("--fps", type=positive, default=15, metavar="X", help="frames a second (15)")
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
        help="images a row (those of the grids that Inference.py wrote)",
    )
    return parser


def picture(images: "np.ndarray", t: int, columns: int, scale: int) -> "np.ndarray":
    """uint8 (N,H,W,C) -> one frame (rows, columns, 3) with a caption below; pixel values stay as they are."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    from image_data.grids import enlarge, image_grid

    caption = 22
    grid = image_grid(enlarge(np.broadcast_to(images, (*images.shape[:3], 3)), scale), columns)
    canvas = Image.fromarray(np.pad(grid, ((0, caption), (0, 0), (0, 0))))
    position = (4, canvas.height - caption + 2)
    ImageDraw.Draw(canvas).text(position, f"t = {t}", "white", ImageFont.load_default(14))
    return np.asarray(canvas)


def write_animation(path: Path, pictures: "list[np.ndarray]", fps: float, hold: float) -> None:
    """A .gif or .webp that begins again and again; the last picture stays for `hold` seconds. WebP keeps all colours, GIF 256 a picture."""
    import imageio.v3 as imageio

    options: dict[str, Any] = {
        "duration": [1000 / fps] * (len(pictures) - 1) + [1000 * hold],
        "loop": 0,
    }  # ms
    if path.suffix.lower() == ".webp":
        options["lossless"] = True
    imageio.imwrite(path, pictures, plugin="pillow", **options)


def write_video(path: Path, pictures: "list[np.ndarray]", fps: float, hold: float) -> None:
    """An .mp4 that players and browsers take: H.264, yuv420p, sides padded to even ones, the index in front; the last picture is
    repeated for `hold` seconds. Colours are BT.709, and said to be. crf 12: flat pixels stay flat."""
    import av
    import numpy as np

    H, W, _ = pictures[0].shape
    frames = pictures + pictures[-1:] * (max(1, round(hold * fps)) - 1)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        stream = file.add_stream(
            "libx264",
            rate=Fraction(fps).limit_denominator(1000),
            options={"crf": "12", "preset": "slow"},
        )
        stream.width, stream.height, stream.pix_fmt = W + W % 2, H + H % 2, "yuv420p"
        context = stream.codec_context
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = (
            1,
            1,
            1,
            1,
        )  # limited, and BT.709
        for frame in frames:
            padded = np.pad(frame, ((0, H % 2), (0, W % 2), (0, 0)))
            picture = av.VideoFrame.from_ndarray(padded).reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            file.mux(stream.encode(picture))
        file.mux(stream.encode())


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)

    from runtime.atomic_file import complete_file
    from sampling.trajectory import read_trajectory

    try:
        trajectory = read_trajectory(args.trajectory)
        frames, times = trajectory.frames, trajectory.times
        columns = args.columns or trajectory.columns
        pictures = [
            picture(images, int(t), columns, args.scale) for images, t in zip(frames, times)
        ]
        with complete_file(args.out) as temporary:
            (write_video if args.out.suffix.lower() == ".mp4" else write_animation)(
                temporary, pictures, args.fps, args.hold
            )
    except ImportError:
        parser.error("an .mp4 needs PyAV: pip install av, or choose .gif or .webp")
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot write {args.out} ({error.strerror or error}): choose another --out")
    print(f"{args.out}: {len(pictures)} frames, {args.out.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    Stop().arm(
        brief=True
    )  # SIGUSR1 aside, a signal ends it at once and leaves no half-written file
    sys.exit(main())
