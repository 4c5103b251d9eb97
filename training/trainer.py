"""Build the Trainer of a run, with its callbacks in the order in which they are called."""

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy

from checkpoints.checkpoint_file import CompleteCheckpointIO
from runtime.cluster import cluster_environment
from runtime.launcher import Machine
from runtime.signals import Stop
from training.batches import AccumulationProgress, TrainingBatches, ValidationBatches
from training.checkpointing import Checkpointing
from training.divergence import Start
from training.dropout_seed import DropoutSeed
from training.early_averages import EarlyAverages
from training.ema import Ema
from training.gradient_guard import GradientGuard
from training.lightning_workarounds import (
    leave_signals_alone,
    skip_sigterm_broadcast,
    start_without_steps,
    unused_root_dir,
)
from training.measure import Measure
from training.missed_validation import MissedValidation
from training.posthoc_averages import PowerEmas
from training.preview import Preview, preview_inputs
from training.progress import Progress
from training.setup import TrainingRun
from training.training_loss import TrainingLoss
from training.validation import Validation


@dataclass(frozen=True)
class Callbacks:
    """All callbacks in order, the ones used elsewhere by name, and the training batches."""

    all: list[pl.Callback]
    checkpointing: Checkpointing
    validation: Validation
    batches: TrainingBatches


def build_callbacks(run: TrainingRun, start: Start, machine: Machine, stop: Stop) -> Callbacks:
    settings = run.settings
    ema = Ema(settings.ema_decay)
    guard = GradientGuard(settings.clip, start.attempt)
    checkpointing = Checkpointing(
        run.run_dir,
        settings.save_every,
        settings.max_time,
        run.fixed,
        stop,
        guard,
        start.elapsed,
    )
    validation = Validation(ValidationBatches(run.validation, checkpointing.signal_arrived))
    progress = Progress(settings.batch_size, checkpointing.seconds_left, validation)
    callbacks: list[pl.Callback] = [
        AccumulationProgress(),
        DropoutSeed(start.attempt),
        guard,
        TrainingLoss(settings.log_every),
        validation,
        ema,
        EarlyAverages(ema),
    ]
    if settings.posthoc_ema:
        callbacks.append(PowerEmas(run.run_dir / "averages", settings.save_every))
    if settings.eval_every and machine.is_first:
        # Measure before saving: a run that resumes from this step has the result in its logs.
        callbacks.append(build_measure(run, ema, progress, checkpointing, stop))
    callbacks.append(checkpointing)
    preview = None
    if machine.is_first:
        inputs = None
        if run.model_settings.condition:
            inputs = preview_inputs(run.unseen, run.model_settings, machine.device)
        folder = run.run_dir / "samples"
        preview = Preview(folder, ema, settings.batch_size, stop, inputs=inputs)
        callbacks += [preview, progress]
    callbacks.append(MissedValidation(run.run_dir, settings.val_every, preview))
    batches = TrainingBatches(run.batches, settings.accumulate, start.attempt)
    return Callbacks(callbacks, checkpointing, validation, batches)


def build_measure(
    run: TrainingRun, ema: Ema, progress: Progress, checkpointing: Checkpointing, stop: Stop
) -> Measure:
    settings, reference = run.settings, run.reference
    return Measure(
        settings.eval_every,
        settings.eval_images,
        run.unseen,
        reference.extractor if reference else None,
        reference.features if reference else None,
        ema,
        progress,
        settings.batch_size,
        stop,
        checkpointing.exclude,
    )


def build_trainer(
    run: TrainingRun, start: Start, machine: Machine, callbacks: Callbacks
) -> pl.Trainer:
    settings, processes = run.settings, machine.processes
    strategy: Any = "auto"
    if processes.world_size > 1:
        strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    trainer = pl.Trainer(
        accelerator=machine.device.type,
        devices=processes.world_size // processes.num_nodes,
        num_nodes=processes.num_nodes,
        strategy=strategy,
        plugins=[CompleteCheckpointIO(start.checkpoint), cluster_environment()],
        precision="bf16-mixed" if machine.precision == "bf16" else "32-true",
        max_steps=settings.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=settings.accumulate,
        val_check_interval=settings.val_every * settings.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=settings.log_every,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        logger=False,
        callbacks=callbacks.all,
        default_root_dir=unused_root_dir(run.run_dir),
    )
    leave_signals_alone(trainer)
    skip_sigterm_broadcast(trainer)
    start_without_steps(trainer)
    return trainer
