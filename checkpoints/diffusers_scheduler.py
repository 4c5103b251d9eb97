"""Convert a model's schedule, parameterization and variance to a DDPMScheduler, and back.

config = scheduler_config(settings)            # settings: those of a `DiffusionModel`, by name
settings = scheduler_settings(config)
"""

from typing import Any

import numpy as np

from checkpoints.json_values import shorten, to_float
from diffusion import schedules
from diffusion.settings import check_settings

Settings = dict[str, Any]

# the defaults of DDPMScheduler
DEFAULTS: Settings = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "clip_sample_range": 1.0,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
# schedules with the same betas in both projects; diffusers' sigmoid schedule differs from ours
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
# schedules of diffusers that become a table of betas
TABLES = ("scaled_linear", "sigmoid", "laplace")
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
VARIANCES = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "learned_range": "learned",
}
VARIANCE_TYPES = {"large": "fixed_large", "small": "fixed_small", "learned": "learned_range"}
# the values that this project supports
SUPPORTED = {
    "_class_name": ("DDPMScheduler", "DDIMScheduler"),
    "beta_schedule": (*SCHEDULES.values(), *TABLES),
    "prediction_type": tuple(PREDICTIONS.values()),
    "variance_type": tuple(VARIANCES),
    "thresholding": (False,),
    "clip_sample": (True,),
    "clip_sample_range": (1.0,),
}


def scheduler_config(settings: Settings) -> Settings:
    """The configuration of the DDPMScheduler with these settings.

    With timestep_spacing "linspace", sampling steps are spread evenly over T .. 1, and the last one
    goes from 1 to 0. "leading" would begin below T, "trailing" would add noise in the last step.
    """
    T, betas = settings["T"], settings["betas"]
    if not betas and settings["schedule"] not in SCHEDULES:
        betas = schedules.betas(settings["schedule"], T).tolist()
    return DEFAULTS | {
        "num_train_timesteps": T,
        "beta_start": settings["beta_small"],
        "beta_end": settings["beta_large"],
        "beta_schedule": SCHEDULES.get(settings["schedule"], "linear"),
        "trained_betas": tuple(betas) or None,
        "variance_type": VARIANCE_TYPES[settings["variance"]],
        "prediction_type": PREDICTIONS[settings["parameterization"]],
        "timestep_spacing": "linspace",
        "rescale_betas_zero_snr": settings["zero_terminal_snr"],
    }


def scheduler_settings(config: Settings) -> Settings:
    """The settings of a `DiffusionModel` for a configuration of DDPMScheduler or DDIMScheduler.

    A DDIMScheduler has the small variance. The number and the spacing of sampling steps are not
    part of a model and are ignored. Raises ValueError with the name of an unsupported setting.
    """
    config = {"_class_name": None} | DEFAULTS | config
    for name, supported in SUPPORTED.items():
        if config[name] not in supported:
            choices = " or ".join(map(shorten, supported))
            raise ValueError(
                f"{name} is {shorten(config[name])}, but this project supports {choices}"
            )
    our_schedules = {theirs: ours for ours, theirs in SCHEDULES.items()}
    our_predictions = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    settings: Settings = {
        "T": config["num_train_timesteps"],
        "beta_small": to_float(config["beta_start"]),
        "beta_large": to_float(config["beta_end"]),
        "schedule": our_schedules.get(config["beta_schedule"], "linear"),
        "betas": tuple(map(to_float, config["trained_betas"] or ())),
        "zero_terminal_snr": config["rescale_betas_zero_snr"],
        "parameterization": our_predictions[config["prediction_type"]],
        "variance": VARIANCES[config["variance_type"]],
    }
    check_settings(settings)
    if config["beta_schedule"] in TABLES and not settings["betas"]:
        first, last, T = settings["beta_small"], settings["beta_large"], settings["T"]
        settings["betas"] = tuple(betas_of(config["beta_schedule"], T, first, last).tolist())
    return settings


def betas_of(schedule: str, T: int, first: float, last: float) -> np.ndarray:
    """beta(1) .. beta(T) of diffusers' schedule, one of `TABLES`: float64 (T,).

    "scaled_linear" is linear in sqrt(beta). In "sigmoid", beta is a sigmoid from -6 to 6, scaled to
    `first` .. `last`. In "laplace", the log SNR has a Laplace distribution; `first` and `last` are
    ignored.
    """
    if schedule == "scaled_linear":
        return np.linspace(first**0.5, last**0.5, T) ** 2
    if schedule == "sigmoid":
        return first + (last - first) / (1 + np.exp(-np.linspace(-6, 6, T)))
    u = np.arange(T + 1) / T  # (T+1,)
    log_snr = np.where(u > 0.5, 0.5, -0.5) * np.log(1 - 2 * np.abs(0.5 - u) + 1e-6)
    alpha_bar = 1 / np.sqrt(1 + np.exp(-log_snr))
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], schedules.MAX_BETA)
