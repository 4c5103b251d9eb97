"""The settings of a `DiffusionModel`.

    settings = ModelSettings(T=1000, width=128)        # the rest as in Ho et al. 2020
    check_settings({"T": 1000, "width": "128"})        # ValueError: width must be ..

Settings that come from a file or a command line are checked once, by `check_settings`.
"""

import reprlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffusion import augment, schedules
from diffusion.conditions import KINDS as CONDITIONS
from diffusion.conditions import LARGEST_FACTOR, condition_channels, is_condition
from diffusion.objective import T_SAMPLINGS, WEIGHTINGS
from diffusion.schedules import SCHEDULES
from runtime.image_size import Size, size_of

PARAMETERIZATIONS = ("eps", "x0", "v")
VARIANCES = ("large", "small", "learned")
OPTIMIZERS = ("adam", "muon")
LR_SCHEDULES = ("constant", "linear", "cosine")
DERIVED = ("outputs", "augmentations")  # computed from other settings, but kept in checkpoints
NETWORK = (
    *("depth", "condition_depth", "width", "mults", "attention", "blocks", "dropout", "size"),
    *("patch", "film", "classes"),
)
# Settings that checkpoints of earlier versions lack. Those were trained with the defaults.
ADDED = (
    *("optimizer", "muon_lr", "lr_schedule", "cooldown", "guidance", "unet2d"),
    *("condition", "condition_depth", "clusters", "cluster_shares"),
)
LEAST_SIGNAL = 1e-30  # below this alpha_bar, x_t in float32 does not depend on x_0


@dataclass(frozen=True)
class ModelSettings:
    """All settings of a model. The defaults are those of Ho et al. 2020 for CIFAR-10, but without
    dropout."""

    # The forward process: the number of steps; the schedule of beta, "linear" from beta_small to
    # beta_large or another one of `schedules.betas`; a table of T betas instead of a schedule;
    # whether the schedule is rescaled to alpha_bar(T) = 0 (Lin et al. 2024).
    T: int = 1000
    schedule: str = "linear"
    beta_small: float = 1e-4
    beta_large: float = 0.02
    betas: tuple[float, ...] = ()
    zero_terminal_snr: bool = False

    # The network's prediction: "eps", "x0", or "v" (Salimans & Ho 2022, appendix D). The variance
    # of a reverse step: "large" is beta_t and "small" that of the posterior (section 3.2 of Ho et
    # al. 2020); "learned" lies between them (section 3.1 of Nichol & Dhariwal 2021).
    parameterization: str = "eps"
    variance: str = "large"

    # The loss: see `objective`. label_dropout: the fraction of labels dropped in training, for
    # classifier-free guidance (Ho & Salimans 2022). augment: the probability of each augmentation,
    # see `augment`.
    weighting: str = "plain"
    t_sampling: str = "uniform"
    label_dropout: float = 0.1
    augment: float = 0.0

    # The optimizer, "adam" or "muon". lr and muon_lr: the learning rates of Adam and of Muon.
    # warmup: the steps over which they rise linearly from 0. cooldown: the fraction of all steps
    # over which they fall again, see `optimizers`.
    optimizer: str = "adam"
    lr: float = 2e-4
    muon_lr: float = 0.02
    warmup: int = 5000
    lr_schedule: str = "constant"
    cooldown: float = 1.0

    # The seed of all noise in training.
    seed: int = 0

    # The default guidance scale of samples, 1 for none. Without labels, an early average of the
    # same training guides the model (autoguidance, Karras et al. 2024).
    guidance: float = 1.0

    # The dataset and its classes, so that a checkpoint is complete.
    dataset: str = ""
    class_names: tuple[str, ...] = ()

    # The number of clusters that replace the classes of the dataset, 0 for none, and the share of
    # the training images in each. Samples get clusters with the same frequencies.
    clusters: int = 0
    cluster_shares: tuple[float, ...] = ()

    # The condition of an image-conditional model: see `conditions`; "" for none.
    condition: str = ""

    # The network: see `Unet`.
    depth: int = 3
    condition_depth: int = 0
    width: int = 128
    mults: tuple[int, ...] = (1, 2, 2, 2)
    attention: tuple[int, ...] = (16,)
    blocks: int = 2
    dropout: float = 0.0
    size: Size = 32
    patch: int = 1
    film: bool = False
    classes: int = 0

    # The configuration of a UNet2DModel of diffusers instead of a `Unet`, as JSON; "" for a `Unet`.
    # The settings above are then those of the most similar `Unet`.
    unet2d: str = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelSettings":
        """Make settings from values by name, such as a checkpoint's; `DERIVED` ones are ignored."""
        return cls(**{name: value for name, value in values.items() if name not in DERIVED})

    @property
    def network(self) -> dict[str, Any]:
        """The arguments of `Unet`."""
        return {name: getattr(self, name) for name in NETWORK} | {
            "outputs": 2 if self.variance == "learned" else 1,
            "augmentations": augment.LABEL_LENGTH if self.augment else 0,
        }

    @property
    def uses_labels(self) -> bool:
        """Whether the classes are the labels of the dataset, not clusters."""
        return self.classes > 0 and not self.clusters

    def beta(self) -> np.ndarray:
        """beta(1) .. beta(T), float64 (T,). Raises ValueError if they are not T numbers, or if x_t
        would contain too little of x_0 to predict it."""
        T = self.T
        if self.betas and len(self.betas) != T:
            raise ValueError(f"betas has {len(self.betas)} numbers, not T = {T}")
        beta = np.array(self.betas)
        if not self.betas:
            beta = schedules.betas(self.schedule, T, self.beta_small, self.beta_large)
        if self.zero_terminal_snr:
            beta = schedules.zero_terminal_snr(beta)
        alpha_bar = np.cumprod(1 - np.concatenate([[0.0], beta]))
        last, before = alpha_bar[-1], alpha_bar[-2]
        falls = (np.diff(alpha_bar[:-1]) < 0).all() and 0 <= last < before
        if not falls or before < LEAST_SIGNAL:
            raise ValueError(
                f"alpha_bar must decrease at every t and be at least {LEAST_SIGNAL:g} at "
                f"t = T - 1, where it is {before:.0e}: choose fewer steps or other betas"
            )
        if self.parameterization == "eps" and last < LEAST_SIGNAL:
            raise ValueError(
                f"the betas leave no trace of the image at t = {T} (alpha_bar is {last:.0e}): "
                "choose fewer steps, smaller betas, or parameterization v or x0"
            )
        if self.zero_terminal_snr and self.weighting in ("min-snr", "p2"):
            raise ValueError(
                f"with zero_terminal_snr, weighting {self.weighting} gives no weight to t = T, "
                "where sampling begins: choose plain, min-snr+1 or edm"
            )
        return beta


def read_schedule(settings: ModelSettings) -> ModelSettings:
    """Replace a schedule that is the path of a file by the table of betas in the file. Raises
    ValueError if it cannot be read, or if T is neither the default nor the number of betas."""
    if settings.schedule in SCHEDULES:
        return settings
    betas = schedules.read_betas(settings.schedule)
    if settings.T not in (ModelSettings.T, len(betas)):
        raise ValueError(
            f"--schedule {settings.schedule} has {len(betas)} betas, not --T {settings.T}: "
            "leave out --T"
        )
    return replace(settings, schedule="linear", betas=betas, T=len(betas))


# Type, smallest and largest value of each number.
NUMBERS: dict[str, tuple[type, float, float]] = {
    "T": (int, 1, 100_000),
    "beta_small": (float, 1e-12, 0.9999),
    "beta_large": (float, 1e-12, 0.9999),
    "depth": (int, 1, 16),
    "condition_depth": (int, 0, 16),
    "width": (int, 4, 1024),
    "blocks": (int, 1, 16),
    "dropout": (float, 0, 0.999),
    "patch": (int, 1, 16),
    "film": (bool, 0, 1),
    "classes": (int, 0, 100_000),
    "clusters": (int, 0, 10_000),
    "outputs": (int, 1, 2),
    "augmentations": (int, 0, 64),
    "augment": (float, 0, 1),
    "label_dropout": (float, 0, 1),
    "zero_terminal_snr": (bool, 0, 1),
    "guidance": (float, 0, 1000),
    "lr": (float, 0, 10),
    "muon_lr": (float, 0, 10),
    "warmup": (int, 0, 10**9),
    "cooldown": (float, 0, 1),
    "seed": (int, 0, 2**63 - 1),
}
KINDS = {int: "a whole number", float: "a number"}
LONGEST_SIDE = 1024
# Fewest entries, most entries, and the largest entry of each list.
LISTS = {"mults": (1, 8, 64), "attention": (0, 16, 1024)}
CHOICES = {
    "parameterization": PARAMETERIZATIONS,
    "variance": VARIANCES,
    "schedule": SCHEDULES,
    "weighting": WEIGHTINGS,
    "t_sampling": T_SAMPLINGS,
    "optimizer": OPTIMIZERS,
    "lr_schedule": LR_SCHEDULES,
}


def check_settings(settings: dict[str, Any], title: Callable[[str], str] = str) -> None:
    """Check types and ranges of some or all settings by name, also of `DERIVED` ones. Raises
    ValueError with a one-line message about the first wrong setting. title: gives the name that the
    message uses for a setting."""
    for name, value in settings.items():
        good, expected = check_setting(name, value)
        if not good:
            raise ValueError(f"{title(name)} must be {expected}, not {reprlib.repr(value)}")
    class_names, classes = settings.get("class_names", ()), settings.get("classes", 0)
    if classes and len(class_names) != classes:
        raise ValueError(f"class_names has {len(class_names)} names, not {classes}")
    clusters, shares = settings.get("clusters", 0), settings.get("cluster_shares", ())
    if shares and not len(shares) == clusters == classes:
        raise ValueError(
            f"cluster_shares has {len(shares)} numbers for {clusters} clusters and "
            f"{classes} classes"
        )
    if {"condition", "condition_depth", "depth"} <= settings.keys():
        kind, channels = settings["condition"], settings["condition_depth"]
        needed = condition_channels(kind, settings["depth"], paired=channels)
        if channels != needed or bool(channels) != bool(kind):
            raise ValueError(f"condition {kind or 'none'} cannot have {channels} channels")
    if settings.get("beta_small", 0) > settings.get("beta_large", 1):
        raise ValueError(
            f"{title('beta_small')} {settings['beta_small']} is larger than "
            f"{title('beta_large')} {settings['beta_large']}"
        )


def check_choices(settings: ModelSettings) -> None:
    """Raise ValueError if a setting is not one of its `CHOICES`."""
    check_settings({name: getattr(settings, name) for name in CHOICES})


def check_setting(name: str, value: Any) -> tuple[bool, str]:
    """Whether this setting may have this value, and a description of the valid values. Raises
    ValueError for an unknown name."""
    if name in NUMBERS:
        kind, low, high = NUMBERS[name]
        good = type(value) is kind and low <= value <= high
        if kind is bool:
            return good, "true or false"
        return good, f"{KINDS[kind]} from {low:g} to {high:g}"
    if name in LISTS:
        fewest, most, high = LISTS[name]
        good = is_tuple_of(int, value) and fewest <= len(value) <= most
        good = good and all(1 <= entry <= high for entry in value)
        return good, f"{fewest} to {most} whole numbers from 1 to {high}"
    if name in CHOICES:
        return value in CHOICES[name], f"one of {', '.join(CHOICES[name])}"
    if name == "condition":
        good = type(value) is str and is_condition(value)
        return good, f"one of {', '.join(CONDITIONS)}, where N is from 2 to {LARGEST_FACTOR}"
    if name == "size":
        return is_size(value), f"a side of a square or height and width, from 1 to {LONGEST_SIDE}"
    if name == "betas":
        good = is_tuple_of(float, value) and len(value) <= NUMBERS["T"][2]
        good = good and all(0 < beta <= 1 for beta in value)
        return good, "numbers above 0, and at most 1"
    if name == "cluster_shares":
        good = is_tuple_of(float, value) and all(0 <= share <= 1 for share in value)
        return good, "numbers from 0 to 1"
    if name == "dataset":
        return type(value) is str, "a name"
    if name == "unet2d":
        return type(value) is str and len(value) <= 10_000, "a configuration of a network"
    if name == "class_names":
        good = is_tuple_of(str, value) and all(entry.isprintable() for entry in value)
        return good, "printable names"
    raise ValueError(f"unknown setting {reprlib.repr(name)}")


def is_size(value: Any) -> bool:
    """Whether this is an image size as defined in `runtime.image_size`."""
    sides = value if type(value) is tuple else (value, value)
    good = len(sides) == 2 and all(
        type(side) is int and 1 <= side <= LONGEST_SIDE for side in sides
    )
    return good and value == size_of(*sides)


def is_tuple_of(kind: type, value: Any) -> bool:
    return type(value) is tuple and all(type(entry) is kind for entry in value)
