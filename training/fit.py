"""A training run: from where it goes on, where it saves and stops, and how it ends: by itself, by a signal, or in defeat.

What is trained comes from train.py; what a step does is in DiffusionModel, what is shown of it in
Callbacks.
"""

import json
import platform
import sys
from argparse import Namespace
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy

from checkpoints.checkpoint import read_checkpoint
from checkpoints.checkpoint_file import CompleteCheckpointIO
from checkpoints.resume import find_resume_checkpoint
from checkpoints.run_dir import describe_newest, lock_run_dir
from DiffusionModel import DiffusionModel
from image_data.grids import write_grid
from runtime import devices
from runtime.atomic_file import complete_file
from runtime.compiling import compile_network
from runtime.processes import Processes, Refused, cluster_environment, own_exit_status
from runtime.signals import Stop, exit_status
from training import loggers
from training.batches import AccumulationProgress, TrainingBatches, ValidationBatches
from training.checkpointing import Checkpointing
from training.dropout_seed import DropoutSeed
from training.ema import Ema
from training.gradient_guard import GradientGuard
from training.lightning_workarounds import (
    leave_signals_alone,
    skip_sigterm_broadcast,
    unused_root_dir,
)
from training.posthoc_averages import PowerEmas
from training.preview import Preview
from training.progress import Progress
from training.training_loss import TrainingLoss
from training.validation import Validation, bin_names

GOING_BACK = 3  # times that a run which diverges is taken back to its last good checkpoint


def settle(args: Namespace, run: Any, held: ExitStack, about: dict[str, str]) -> Path | None:
    """Claim the run directory for as long as `held` is, find the checkpoint to go on from, and write what a run begins
    with, so that a folder that cannot be written to is known now. Raises ValueError or OSError, in one line."""
    try:
        if lock := lock_run_dir(run.run_dir):
            held.enter_context(lock)
        resume = find_resume_checkpoint(args.resume, run.run_dir, run.model, run.course)
        if not resume or resume["global_step"] < args.max_steps:
            (run.run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
            if (
                not lock or not (run.run_dir / ".lock").exists()
            ):  # it is new, or an earlier run was moved aside, lock and all
                held.enter_context(lock_run_dir(run.run_dir))
            with complete_file(run.run_dir / "config.json") as temporary:
                temporary.write_text(
                    json.dumps(
                        {
                            "command": sys.argv,
                            "settings": vars(args) | {"run_dir": str(run.run_dir)},
                            **about,
                            "hardware": devices.hardware(about["device"]),
                            "python": platform.python_version(),
                            "torch": torch.__version__,
                            "lightning": version("pytorch-lightning"),
                        },
                        indent=1,
                    )
                    + "\n"
                )
            real = run.unseen.images[:36].permute(0, 2, 3, 1).numpy()
            write_grid(run.run_dir / "samples" / "real.png", real)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(
            f"cannot use {run.run_dir} ({error.strerror}): choose another --run-dir"
        ) from None
    return resume["path"] if resume else None


def prepare_step(
    args: Namespace, model: DiffusionModel, B: int, mode: str, precision: str, say: Any = print
) -> None:
    """Prepare the network for training steps of B images: recomputed activations, compiling.

    mode: of torch.compile, "off", or "auto" for what suits the device. Neither changes the numbers
    beyond rounding.
    """
    model.unet.recompute_activations(args.gradient_checkpointing)
    if mode == "auto":
        mode = "default" if model.device.type == "cuda" else "off"
    compile_network(model, mode, B // args.accumulate, precision, say)


def fit(
    args: Namespace,
    run: Any,
    resume: dict[str, Any] | None,
    processes: Processes,
    precision: Any,
    stop: Stop,
) -> int:
    """Train to the end, a signal, or a defeat; -> the exit status. Where training diverges, it goes back to the last good
    checkpoint and on with other noise, `GOING_BACK` times. Raises Refused where it cannot begin or go on."""
    first, world, run_dir, model = (
        processes.global_rank == 0,
        processes.world_size,
        run.run_dir,
        run.model,
    )
    nodes = processes.num_nodes
    say = print if first else lambda *_, **__: None
    stop.deferred = True  # a signal that arrives before the first step is handled after it
    elapsed = 0.0
    attempt = resume["noise"]["stream"] if resume else 0
    while True:
        done = resume["global_step"] if resume else 0
        if done:
            say(f"going on at step {done} of {run_dir}", flush=True)
        ema = Ema(args.ema_decay)
        guard = GradientGuard(args.clip, attempt)
        checkpoints = Checkpointing(
            run_dir, args.save_every, args.max_time, run.course, stop, guard
        )
        batches = TrainingBatches(run.batches, args.accumulate, attempt)
        validation = Validation(ValidationBatches(run.validation, checkpoints.signal_arrived))
        common: list[pl.Callback] = [
            AccumulationProgress(),
            DropoutSeed(attempt),
            guard,
            TrainingLoss(args.log_every),
            validation,
        ]
        checkpoints.elapsed = elapsed
        averages = [PowerEmas(run_dir / "averages", args.save_every)] if args.posthoc_ema else []
        progress = Progress(args.batch_size, checkpoints.seconds_left, validation)
        shown: list[pl.Callback] = [
            Preview(run_dir / "samples", ema, args.batch_size, stop),
            progress,
        ]
        measured: list[
            pl.Callback
        ] = []  # before a step is saved, so that a run which goes on from it has what belongs to it
        if args.eval_every and first:
            from training import measure  # slow to import, and seldom needed

            measured.append(
                measure.Measure(
                    args.eval_every,
                    args.eval_images,
                    run.unseen,
                    run.judge,
                    run.real,
                    ema,
                    progress,
                    args.batch_size,
                    stop,
                    checkpoints.exclude,
                )
            )
        trainer = pl.Trainer(
            accelerator=processes.device.type,
            devices=world // nodes,
            num_nodes=nodes,
            strategy=DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
            if world > 1
            else "auto",
            plugins=[CompleteCheckpointIO(resume), cluster_environment()],
            precision=precision,
            max_steps=args.max_steps,
            max_epochs=-1,
            accumulate_grad_batches=args.accumulate,
            val_check_interval=args.val_every * args.accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            log_every_n_steps=args.log_every,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            logger=False,
            callbacks=[*common, ema, *averages, *measured, checkpoints, *(shown if first else [])],
            default_root_dir=unused_root_dir(run_dir),
        )
        leave_signals_alone(trainer)
        skip_sigterm_broadcast(trainer)
        try:
            prepare_step(
                args,
                model.to(processes.device),
                args.batch_size // world,
                args.compile,
                precision,
                say,
            )
            columns = ["train_loss", "val_loss", *bin_names(model.T), *loggers.MEASURED]
            trainer.loggers = (
                [
                    loggers.MetricsCsv(run_dir / "metrics.csv", columns, done),
                    loggers.Curves(run_dir, done),
                ]
                if first
                else []
            )
            trainer.fit(
                model,
                batches,
                validation.batches,
                ckpt_path=resume["path"] if resume else None,
                weights_only=True,
            )
        except (torch.OutOfMemoryError, MemoryError):
            raise Refused(
                f"out of memory at batch size {args.batch_size}: choose a smaller --batch-size or network"
            ) from None
        except OSError as error:
            print(
                f"train.py: cannot write to {run_dir} ({error.strerror or error}) at step {trainer.global_step}; "
                f"{describe_newest(run_dir)}",
                file=sys.stderr,
                flush=True,
            )
            return processes.abort(1)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            if not resume or checkpoints.started:
                raise
            raise Refused(
                f"checkpoint {resume['path']} cannot be resumed ({type(error).__name__}: {error})"
            ) from None
        at = f"at step {trainer.global_step} after {checkpoints.seconds():.0f} s"
        over = processes.broadcast(
            trainer.global_step == args.max_steps or checkpoints.seconds_left() <= 0
        )
        if checkpoints.stopped_by and not (over and checkpoints.saved):
            say(
                f"stopped by {checkpoints.stopped_by.name} {at}; {describe_newest(run_dir)}; run the same command again to go on",
                flush=True,
            )
            return own_exit_status(exit_status(checkpoints.stopped_by))
        if not checkpoints.diverged:
            say(
                f"trained{'' if trainer.global_step == args.max_steps else ', --max-time is over'}, {at}; checkpoint {checkpoints.saved}"
                + (
                    f"; {checkpoints.stopped_by.name} came in the last validation"
                    if checkpoints.stopped_by
                    else ""
                ),
                flush=True,
            )
            return (
                own_exit_status(exit_status(checkpoints.stopped_by))
                if checkpoints.stopped_by
                else 0
            )
        if attempt == GOING_BACK:
            say(
                f"train.py: the loss is not finite {at}, for the {GOING_BACK + 1}th time; {describe_newest(run_dir)}; "
                "try a smaller --lr",
                file=sys.stderr,
            )
            return own_exit_status(1)
        attempt, elapsed, refusal = attempt + 1, checkpoints.seconds(), ""
        try:  # to a checkpoint saved for its step's number: a run that was stopped in between goes back to the same place
            resume = (
                find_resume_checkpoint("auto", run_dir, model, run.course, args.save_every)
                if first
                else None
            )
        except (ValueError, OSError) as error:
            refusal = str(error)
        path, refusal = processes.broadcast((resume["path"] if resume else None, refusal))
        if refusal:
            raise Refused(
                f"the loss is not finite {at}, and there is nothing to go back to: {refusal}",
                by_all=True,
            )
        resume = read_checkpoint(path) if path else None
        say(
            f"the loss is not finite {at}: back to {path or 'the start'} with other noise, {attempt} of {GOING_BACK} times",
            file=sys.stderr,
            flush=True,
        )
        if resume:
            resume["noise"], resume["elapsed"] = {"stream": attempt, "skipped": 0}, elapsed
        torch.manual_seed(args.seed)
        model = DiffusionModel(**run.settings)
        run.batches.load_state_dict({"epoch": 0, "batch": 0})
