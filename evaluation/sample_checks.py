"""Checks of the samples in images/samples.npz, also compared with the training images.

Letters in the shape columns: N images, H and W height and width, C channels.
"""

from pathlib import Path

import numpy as np

from checkpoints.run_dir import newest_checkpoint
from Dataset import NAMES, DiffSet
from evaluation.finding import Finding
from image_data.npz_files import NpzError, is_image_array, read_npz
from runtime.image_size import size_of

MIN_SPREAD = 2.0  # gray levels; an image that varies less counts as constant
MAX_SHIFT = 12.0  # gray levels a channel's mean may be off by, plus three standard errors
MAX_SATURATION = 0.15  # share of values 0 or 255, in excess of the data
CONTRAST = (0.6, 1.6)  # lowest and highest, relative to the data
REAL_IMAGES = 5000  # number of images that samples are compared with


def check_samples(
    run_dir: Path,
    dataset: str | None,
    root: str,
    value_range: tuple[float, float] | None = None,
) -> list[Finding]:
    """Findings about images/samples.npz. dataset: None if it is not known. value_range: as in
    `DiffSet`."""
    file = run_dir / "images" / "samples.npz"
    command = f"python Inference.py --ckpt {run_dir} --out {run_dir / 'images'}"
    samples = read_samples(file)
    if samples is None:
        return [Finding("samples", None, f"there are none at {file}: {command}")]
    newest = newest_checkpoint(run_dir)
    if newest and newest.stat().st_mtime > file.stat().st_mtime:
        observation = f"{file} is older than the newest checkpoint: {command}"
        return [Finding("samples", None, observation)]
    findings = [check_constant(samples), check_equal(samples)]
    try:
        real = read_real(dataset, root, samples, value_range)
    except (OSError, ValueError) as error:
        observation = f"the dataset is not available ({error})"
        return [*findings, Finding("colours", None, observation)]
    return [
        *findings,
        check_colours(samples, real),
        check_saturation(samples, real),
        check_contrast(samples, real),
    ]


def read_samples(file: Path) -> np.ndarray | None:
    """Return uint8 (N,H,W,C), or None if the file is missing or damaged."""
    try:
        samples = read_npz(file, ("arr_0",))["arr_0"]
    except (FileNotFoundError, NpzError):
        return None
    return samples if is_image_array(samples) else None


def read_real(
    dataset: str | None,
    root: str,
    samples: np.ndarray,
    value_range: tuple[float, float] | None,
) -> np.ndarray:
    """Return training images in the size of the samples, uint8 (N,H,W,C). Nothing is downloaded.

    Raises ValueError or OSError with a one-line message.
    """
    if not dataset:
        raise ValueError("config.json names none")
    file = Path(dataset)
    name = (file.stem if file.suffix == ".npz" else dataset).lower()
    downloadable = name in NAMES and name != "shapes" and not file.is_file()
    if downloadable and not (Path(root) / f"{name}.npz").is_file():
        raise ValueError(f"no {name}.npz in {root}")
    data = DiffSet(True, dataset, root, size_of(*samples.shape[1:3]), value_range)
    real = data.images[data.subset(REAL_IMAGES)].permute(0, 2, 3, 1).numpy()
    if real.shape[1:] != samples.shape[1:]:
        raise ValueError(f"{dataset} has another number of channels")
    return real


def spread(images: np.ndarray) -> np.ndarray:
    """Standard deviation of the channel that varies most, for each image (N,)."""
    return images.reshape(len(images), -1, images.shape[3]).std(1).max(1)


def check_constant(samples: np.ndarray) -> Finding:
    """Check that no sample is a single colour."""
    constant = int((spread(samples) < MIN_SPREAD).sum())
    return Finding(
        "constant samples",
        not constant,
        f"{constant} of {len(samples)} samples have one colour all over",
        "the network has not learned, or sampling has diverged: look at samples/step_*.png",
    )


def check_equal(samples: np.ndarray) -> Finding:
    """Check that no two samples are equal."""
    equal = len(samples) - len(np.unique(samples.reshape(len(samples), -1), axis=0))
    return Finding(
        "equal samples",
        not equal,
        f"{equal} of {len(samples)} samples are the same as another",
        "the sampling begins from the same noise, or the model has collapsed",
    )


def check_colours(samples: np.ndarray, real: np.ndarray) -> Finding:
    """Check that the mean of each channel is close to that of the real images."""
    means, expected = samples.mean((0, 1, 2)), real.mean((0, 1, 2))  # (C,)
    standard_error = real.mean((1, 2)).std(0) / len(samples) ** 0.5
    allowed = MAX_SHIFT + 3 * standard_error
    shift = means - expected
    colours = ("red", "green", "blue") if len(shift) == 3 else ("gray",)
    channels = []
    for colour, mean, real_mean in zip(colours, means, expected):
        channels.append(f"{colour} {mean:.0f} ({real_mean:.0f})")
    kind = "tinted"
    if (shift < -allowed).all():
        kind = "too dark"
    elif (shift > allowed).all():
        kind = "too bright"
    return Finding(
        "colours",
        bool((abs(shift) <= allowed).all()),
        f"means of the samples (of the data): {', '.join(channels)}",
        f"the samples are {kind}: train longer; if all samples are too gray, "
        "try --zero-terminal-snr",
    )


def check_saturation(samples: np.ndarray, real: np.ndarray) -> Finding:
    """Check that not many more values are 0 or 255 than in the real images."""
    saturated, usual = saturation(samples), saturation(real)
    return Finding(
        "saturation",
        saturated <= usual + MAX_SATURATION,
        f"{100 * saturated:.0f}% of the values are 0 or 255 ({100 * usual:.0f}% of the data)",
        "too many: try a smaller --guidance or more --steps, or train longer",
    )


def saturation(images: np.ndarray) -> float:
    """Share of the values that are 0 or 255."""
    return float(((images == 0) | (images == 255)).mean())


def check_contrast(samples: np.ndarray, real: np.ndarray) -> Finding:
    """Check that values vary within an image about as much as in real images."""
    contrast, usual = float(spread(samples).mean()), float(spread(real).mean())
    low, high = CONTRAST
    return Finding(
        "contrast",
        low < contrast / max(usual, 1) < high,
        f"standard deviation of {contrast:.0f} within an image ({usual:.0f} in the data)",
        "contrast too low: train longer; too high: try a smaller --guidance",
    )
