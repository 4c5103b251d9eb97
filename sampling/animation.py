"""Write a trajectory as a GIF, WebP or MP4 animation.

    settings = AnimationSettings(Path("samples/trajectory.npz"), Path("denoise.gif"))
    frames = write_animation(settings)

Letters in the shape columns: N images, H and W height and width, C channels.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from image_data.grids import GAP, enlarge, image_grid
from runtime.atomic_file import complete_file
from sampling.trajectory import read_trajectory

try:
    import av
except ImportError:  # only .mp4 needs it
    av = None  # type: ignore[assignment]

CAPTION_HEIGHT = 22  # pixels below the images
FONT_SIZE = 14
BT709 = 1  # color space, primaries and transfer function of HD video, in ffmpeg's numbers
LIMITED_RANGE = 1  # 16 to 235, as players expect


@dataclass(frozen=True)
class AnimationSettings:
    """The content and the format of an animation."""

    trajectory: Path
    out: Path  # ends in .gif, .webp or .mp4
    fps: float = 15
    hold: float = 2  # seconds for which the last frame is shown
    scale: int = 3  # factor by which pixels are enlarged
    columns: int | None = None  # images in a row; None for the trajectory's number


def write_animation(settings: AnimationSettings) -> int:
    """Write the animation and return its number of frames.

    Raises ValueError if the trajectory cannot be read, OSError if the file cannot be written, and
    ImportError if an .mp4 is asked for without PyAV.
    """
    trajectory = read_trajectory(settings.trajectory)
    columns = settings.columns or trajectory.columns
    frames = [
        draw_frame(images, int(t), columns, settings.scale)
        for images, t in zip(trajectory.frames, trajectory.times)
    ]
    write = write_video if settings.out.suffix.lower() == ".mp4" else write_gif_or_webp
    with complete_file(settings.out) as temporary:
        write(temporary, frames, settings.fps, settings.hold)
    return len(frames)


def draw_frame(images: np.ndarray, t: int, columns: int, scale: int) -> np.ndarray:
    """Arrange images uint8 (N,H,W,C) in a grid, with t as a caption below: uint8 (H',W',3).

    Pixel values are not changed, so all frames have the same range. With 0 columns the grid is
    about square.
    """
    rgb = np.broadcast_to(images, (*images.shape[:3], 3))
    grid = image_grid(enlarge(rgb, scale), columns)
    canvas = Image.fromarray(np.pad(grid, ((0, CAPTION_HEIGHT), (0, 0), (0, 0))))
    position = (GAP + 2, grid.shape[0] + 2)
    font = ImageFont.load_default(FONT_SIZE)
    ImageDraw.Draw(canvas).text(position, f"t = {t}", "white", font)
    return np.asarray(canvas)


def write_gif_or_webp(path: Path, frames: list[np.ndarray], fps: float, hold: float) -> None:
    """Write an animation that loops forever and shows its last frame for `hold` seconds.

    WebP keeps all colours. GIF has at most 256 in each frame.
    """
    options: dict[str, Any] = {
        "duration": [1000 / fps] * (len(frames) - 1) + [1000 * hold],  # milliseconds
        "loop": 0,  # endless
    }
    if path.suffix.lower() == ".webp":
        options["lossless"] = True
    # Into memory: imageio would write to a full disk twice, and print a traceback the second time.
    extension = path.suffix.lower()
    data = imageio.imwrite("<bytes>", frames, extension=extension, plugin="pillow", **options)
    assert isinstance(data, bytes)
    path.write_bytes(data)


def write_video(path: Path, frames: list[np.ndarray], fps: float, hold: float) -> None:
    """Write an .mp4 that common players and browsers support.

    It is H.264, yuv420p and BT.709, with the index at the beginning of the file. The last frame is
    repeated for `hold` seconds. The quality, crf 12, is high enough that flat areas stay flat.
    """
    if av is None:
        raise ImportError("PyAV is not installed")
    padded = [pad_to_even(frame) for frame in frames]
    padded += padded[-1:] * (round(hold * fps) - 1)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        rate = Fraction(fps).limit_denominator(1000)
        stream = file.add_stream("libx264", rate=rate, options={"crf": "12", "preset": "slow"})
        context = stream.codec_context
        context.color_range = LIMITED_RANGE
        context.colorspace = BT709
        context.color_primaries = BT709
        context.color_trc = BT709
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = padded[0].shape[:2]
        for frame in padded:
            picture = av.VideoFrame.from_ndarray(frame).reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            file.mux(stream.encode(picture))
        file.mux(stream.encode())


def pad_to_even(frame: np.ndarray) -> np.ndarray:
    """Pad a frame with black to an even height and width, which yuv420p needs."""
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)))
