"""Flags that several scripts share, and their choices.

    group = parser.add_argument_group("machine")
    add_batch_size(group, default=64, help="images at once (64)")
    add_processes(group, help="processes a node (1)")

Help texts that differ between scripts are arguments. The names of samplers, grids and variances
are repeated here, because the modules that define them import torch and --help must not.
"""

from argparse import _ActionsContainer as Group  # a parser, or a group of its flags
from collections.abc import Callable
from typing import Any

from runtime.arguments import real, whole
from runtime.pretrained import model_path

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "32", "tf32", "bf16")
COMPILE_MODES = ("off", "default", "reduce-overhead", "max-autotune")  # those of torch.compile
WEIGHTS = ("ema", "raw")
SAMPLERS = ("ddpm", "ddim", "heun", "dpm++", "unipc")
GRIDS = ("uniform", "quadratic", "log-snr", "edm")
GUIDES = ("labels", "auto")
VARIANCES = ("large", "small", "learned")


def flag_of(setting: str) -> str:
    """The flag of a setting of the model, for messages. The data or --init-from determine
    some settings; no flag holds their value, so their own name is returned."""
    from_data = ("data", "dataset", "depth", "condition_depth", "classes", "class_names")
    if setting in (*from_data, "cluster_shares", "unet2d"):
        return setting
    flags = {"size": "--image-size", "betas": "--schedule"}
    return flags.get(setting, "--" + setting.replace("_", "-"))


def add_checkpoint(group: Group, help: str, required: bool = False) -> None:
    """Add --ckpt."""
    group.add_argument("--ckpt", type=model_path, required=required, metavar="PATH", help=help)


def add_weights(group: Group) -> None:
    """Add --weights and --ema-length."""
    group.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="ema",
        help="ema: averaged weights; raw: those of the last step (ema)",
    )
    group.add_argument(
        "--ema-length",
        type=real(0.01, 0.25),
        metavar="X",
        help="average the weights over this share of the training; needs train.py --posthoc-ema "
        "(as --weights says)",
    )


def add_data_root(group: Group, help: str) -> None:
    """Add --data-root."""
    group.add_argument("--data-root", default="data", metavar="DIR", help=help)


def add_seed(group: Group, help: str) -> None:
    """Add --seed."""
    group.add_argument("--seed", type=whole(0), default=0, metavar="N", help=help)


def add_sampling_steps(group: Group, type: Callable[[str], Any], help: str) -> None:
    """Add --steps, one number or several according to `type`.

    The default, None, means the default of the sampler.
    """
    group.add_argument("--steps", type=type, metavar="N", help=help)


def add_evaluations(group: Group) -> None:
    """Add --evaluations."""
    group.add_argument(
        "--evaluations",
        type=whole(1),
        metavar="N",
        help="instead of --steps: as many steps as N network evaluations per image allow (none)",
    )


def add_grid(group: Group, default: str | None = None) -> None:
    """Add --grid."""
    group.add_argument(
        "--grid", choices=GRIDS, default=default, help="how the steps are spread over t (uniform)"
    )


def add_eta(group: Group, help: str) -> None:
    """Add --eta."""
    group.add_argument("--eta", type=real(0, 1), metavar="X", help=help)


def add_variance(group: Group, help: str, default: str | None = None) -> None:
    """Add --variance, the variance of a reverse step."""
    group.add_argument("--variance", choices=VARIANCES, default=default, help=help)


def add_guidance(group: Group, help: str) -> None:
    """Add --guidance."""
    group.add_argument("--guidance", type=real(0, 1000), metavar="W", help=help)


def guide_source(text: str) -> str:
    """Parse "labels", "auto", or the path or name of a model."""
    return text if text in GUIDES else str(model_path(text, GUIDES))


def add_guide(group: Group) -> None:
    """Add --guide-with."""
    group.add_argument(
        "--guide-with",
        type=guide_source,
        metavar="WHAT",
        help="what to guide away from. labels: the model without the class; auto: an early "
        "average in the checkpoint; a path: a worse model (labels if there are classes, "
        "else auto)",
    )


def add_forward_process(group: Group) -> None:
    """Add --T and --schedule."""
    add = group.add_argument
    add("--T", type=whole(1), default=1000, metavar="N", help="steps of the forward process (1000)")
    add(
        "--schedule",
        default="linear",
        metavar="WHAT",
        help="linear, cosine, sigmoid, or a file of T betas, one per line (linear)",
    )


def add_batch_size(group: Group, default: int, help: str) -> None:
    """Add --batch-size."""
    group.add_argument("--batch-size", type=whole(1), default=default, metavar="N", help=help)


def add_precision(
    group: Group,
    help: str = "auto: bf16 autocast where the hardware has it, else 32; tf32: CUDA only (auto)",
) -> None:
    """Add --precision."""
    group.add_argument("--precision", choices=PRECISIONS, default="auto", help=help)


def add_compile(group: Group, help: str, auto: bool = False) -> None:
    """Add --compile, off by default. With `auto`, "auto" is a choice and the default."""
    choices = ("auto", *COMPILE_MODES) if auto else COMPILE_MODES
    group.add_argument("--compile", choices=choices, default=choices[0], help=help)


def add_processes(group: Group, help: str) -> None:
    """Add --device, --devices and --num-nodes. `help` is the help of --devices."""
    group.add_argument(
        "--device",
        choices=DEVICES,
        default="auto",
        help="auto: the first available of cuda, mps, cpu (auto)",
    )
    group.add_argument("--devices", type=whole(1), metavar="N", help=help)
    group.add_argument(
        "--num-nodes",
        type=whole(1),
        metavar="N",
        help="nodes (those of srun or torchrun, else 1)",
    )
