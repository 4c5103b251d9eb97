"""Check the contents of a checkpoint, which is never trusted.

Every check raises ValueError with a one-line message about the first error, or one of the errors
`checkpoint.MALFORMED` if the structure is not that of a checkpoint.
"""

import reprlib
from typing import Any

import torch
from torch import Tensor

from checkpoints import posthoc_ema
from DiffusionModel import DiffusionModel

MOST_ITEMS = 10_000  # limit of numbers and containers in the counters of a checkpoint
MOST_RESTARTS = 1000  # limit of restarts with new noise after divergence
MOST_EARLY = 2  # limit of early averages in a checkpoint


def check_weights(
    weights: Any, expected: dict[str, Tensor], dtype: torch.dtype = torch.float32
) -> None:
    """Check that `weights` have the names and shapes of `expected`, are finite and of `dtype`."""
    if not isinstance(weights, dict):
        raise ValueError("the weights must be names and tensors")
    for name in expected.keys() ^ weights.keys():
        problem = "missing" if name in expected else "unknown"
        raise ValueError(f"weight {reprlib.repr(name)} is {problem}")
    for name, value in expected.items():
        check_weight(name, weights[name], tuple(value.shape), dtype)


def check_weight(
    name: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> None:
    """Check that `value` is a finite tensor of this shape, with memory for each element."""
    is_tensor = isinstance(value, Tensor)
    if not is_tensor or tuple(value.shape) != shape or value.dtype != dtype:
        raise ValueError(f"weight {name} must be {str(dtype).removeprefix('torch.')} {shape}")
    # otherwise a large tensor could have a storage of a few bytes
    if value.layout != torch.strided or not value.is_contiguous():
        raise ValueError(f"weight {name} must be a plain, contiguous tensor")
    if not value.isfinite().all():
        raise ValueError(f"weight {name} holds values that are not finite")


def check_training_state(checkpoint: dict[str, Any], model: DiffusionModel) -> None:
    """Check all state that a run of `model` restores: weights, averages, optimizer, counters.

    The learning rate's schedule must be at the checkpoint's "global_step". The optimizer's counts
    of steps may be lower, because it does not count skipped ones.
    """
    network = model.unet.state_dict()
    check_weights(checkpoint["state_dict"], model.state_dict())
    check_weights(checkpoint["ema"].get("weights"), network)
    if checkpoint["course"].get("posthoc_ema"):
        averages = checkpoint["power"]
        if len(averages) != len(posthoc_ema.LENGTHS):
            raise ValueError(f"it holds {len(averages)} averages, not {len(posthoc_ema.LENGTHS)}")
        for weights in averages:
            check_weights(weights, network)
    check_early_averages(checkpoint.get("early", {}), network)
    check_optimizer(checkpoint, model)
    check_counters(checkpoint)


def check_early_averages(averages: Any, network: dict[str, Tensor]) -> None:
    """Check the early averages that a run keeps: see `early_average`."""
    if not isinstance(averages, dict) or len(averages) > MOST_EARLY:
        raise ValueError("the early averages are not those of a run")
    for step, weights in averages.items():
        if type(step) is not int:
            raise ValueError("the step of an early average is not a whole number")
        check_weights(weights, network, torch.float16)


def check_optimizer(checkpoint: dict[str, Any], model: DiffusionModel) -> None:
    """Check the states of the optimizer and of the learning rate's schedule."""
    steps = checkpoint["global_step"]
    fresh = model.configure_optimizers(max(1, steps))
    optimizer: torch.optim.Optimizer = fresh["optimizer"]
    (state,), (schedule,) = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    groups, expected_groups = state["param_groups"], optimizer.state_dict()["param_groups"]
    if len(groups) != len(expected_groups):
        raise ValueError("the optimizer is not that of the run")
    for group, expected, live in zip(groups, expected_groups, optimizer.param_groups):
        check_group(group, expected)
        weights = {i: p.detach() for i, p in zip(expected["params"], live["params"])}
        moments = ("momentum",) if "momentum" in expected else ("exp_avg", "exp_avg_sq")
        check_moments(state["state"], weights, moments)
    if len(state["state"]) > sum(len(group["params"]) for group in expected_groups):
        raise ValueError("the optimizer has states for weights that the run does not have")
    for moments in state["state"].values():
        count = moments["step"]
        if type(count) is not Tensor or count.shape or not 0 <= float(count) <= steps:
            raise ValueError("the optimizer's count of steps is not that of the run")

    names = fresh["lr_scheduler"]["scheduler"].state_dict().keys()
    if schedule["last_epoch"] != steps or schedule.keys() != names:
        raise ValueError("the learning rate's schedule is not that of the run")


def check_group(group: dict[str, Any], expected: dict[str, Any]) -> None:
    """Check a parameter group. Only the learning rate may differ from the expected group."""
    lr, highest = group.get("lr"), expected["initial_lr"]
    same = {**group, "lr": None} == {**expected, "lr": None}
    if type(lr) is not float or not 0 <= lr <= highest or not same:
        raise ValueError("the optimizer's settings are not those of the run")


def check_moments(state: dict[int, Any], weights: dict[int, Tensor], names: Any) -> None:
    """Check the moments in an optimizer's state for these weights."""
    for name in names:
        moments = {str(i): state[i][name] for i in weights if i in state}
        check_weights(moments, {str(i): weight for i, weight in weights.items()})


def check_counters(checkpoint: dict[str, Any]) -> None:
    """Check the counters of schedules, Lightning's loops and callbacks, EMA and noise."""
    updates, noise = checkpoint["ema"]["n"], checkpoint["noise"]
    parts = [checkpoint[name] for name in ("lr_schedulers", "loops", "callbacks")]
    check_plain_data([*parts, updates, noise])
    kinds = {type(updates), *map(type, noise.values())}
    if kinds != {int} or not 0 <= noise["stream"] <= MOST_RESTARTS:
        raise ValueError("a counter is not a whole number")


def check_plain_data(value: Any) -> None:
    """Check that `value` consists of dicts, lists, numbers and strings, at most `MOST_ITEMS`."""
    remaining, count = [value], 0
    while remaining:
        item = remaining.pop()
        if not isinstance(item, (dict, list, tuple, int, float, str, type(None))):
            raise ValueError(f"a counter is of type {type(item).__name__}")
        if isinstance(item, dict):
            remaining.extend(item.values())
        elif isinstance(item, (list, tuple)):
            remaining.extend(item)
        count += 1
        if count > MOST_ITEMS:
            raise ValueError("there are too many counters")
