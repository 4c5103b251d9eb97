"""Workarounds for behaviour of PyTorch Lightning that this project cannot live with.

Each is one function. Its docstring links to the issue, if there is one, and names the version in
which the behaviour was last seen. For each, tests/training/test_lightning_workarounds.py has a test
that fails when the workaround is no longer needed. No other module uses private attributes of
Lightning.
"""

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl


def leave_signals_alone(trainer: pl.Trainer) -> None:
    """Keep the Trainer from replacing the handler of SIGTERM.

    Its own handler raises an exception in the middle of the loop, in some processes and not in
    others: https://github.com/Lightning-AI/pytorch-lightning/issues/20806 (seen in 2.6.6). Signals
    are handled by `runtime.signals.Stop` and `training.checkpointing.Checkpointing`.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None


def skip_sigterm_broadcast(trainer: pl.Trainer) -> None:
    """Keep the Trainer from exchanging SIGTERM between the processes at every step.

    The exchange makes each step wait for the device:
    https://github.com/Lightning-AI/pytorch-lightning/issues/21487 (seen in 2.6.6).
    `training.checkpointing.StopRequests` exchanges signals without waiting.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def unused_root_dir(run_dir: Path) -> Path:
    """Return a `default_root_dir` for the Trainer that does not exist and is never created.

    In a SLURM job the Trainer looks there for `hpc_ckpt_*.ckpt` and resumes from it
    unasked: https://github.com/Lightning-AI/pytorch-lightning/issues/20347 (seen in 2.6.6).
    """
    return run_dir / ".none"


def log_now(trainer: pl.Trainer, metrics: dict[str, Any], steps: int) -> None:
    """Write metrics to all loggers at once; `steps` is the number of steps done.

    `self.log` would write them once more, at a step that is not a multiple of `log_every_n_steps`,
    when training is stopped: https://github.com/Lightning-AI/pytorch-lightning/issues/19990 (seen
    in 2.6.6).
    """
    for logger in trainer.loggers:
        logger.log_metrics(metrics, steps - 1)  # Lightning's step counts from 0


def validate_now(trainer: pl.Trainer) -> None:
    """Validate at the start of training, with all callbacks and loggers.

    When the Trainer resumes a step, it counts the validation of that step as done, although the
    checkpoint was saved before it:
    https://github.com/Lightning-AI/pytorch-lightning/issues/19549 (seen in 2.6.6).
    """
    loop = trainer.fit_loop.epoch_loop.val_loop
    restarting, loop.restarting = loop.restarting, False
    trainer.validating = True
    loop.run()
    trainer.training = True
    loop.restarting = restarting


def start_without_steps(trainer: pl.Trainer) -> None:
    """Call `on_train_start` and `on_train_end` even if no step is left.

    The Trainer then returns at once, by design (seen in 2.6.6): a run that was killed in the
    validation of its last step could not make up for it.
    """
    loop, run = trainer.fit_loop, trainer.fit_loop.run

    def run_or_start() -> None:
        loop.setup_data()
        if trainer.global_step < trainer.max_steps:
            run()
        else:
            loop.on_run_start()
            loop.on_run_end()

    loop.run = run_or_start


def exit_without_teardown(status: int) -> NoReturn:
    """End this process at once, after another process of the run is gone.

    The Trainer would tear down the strategy first, and wait for a collective that cannot complete:
    https://github.com/Lightning-AI/pytorch-lightning/issues/8130 (seen in 2.6.6).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
