"""A training run, from where it goes on to how it ends: by itself, by a signal, or in defeat.

What is trained comes from train.py; what happens at a step is in DiffusionModel and Callbacks.
"""

import json
import os
import re
import sys
from argparse import Namespace
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric import Fabric
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy

import Callbacks
import Checkpoint
import Devices
import RunFolder
from CompleteFile import complete_file
from DiffusionModel import DiffusionModel
from Signals import Stop, status

GOING_BACK = 3  # times that a run which diverges is taken back to its last good checkpoint


class Refused(ValueError):
    """What was asked for cannot be done; the message says why, in one line."""


def settle(args: Namespace, run: Any, held: ExitStack, about: dict[str, str]) -> Path | None:
    """Claim the run directory for as long as `held` is, find the checkpoint to go on from, and write what a run begins
    with, so that a folder that cannot be written to is known now. Raises ValueError or OSError, in one line."""
    try:
        if lock := RunFolder.claim(run.run_dir):
            held.enter_context(lock)
        resume = Checkpoint.to_resume(args.resume, run.run_dir, run.model, run.course)
        if not resume or resume["global_step"] < args.max_steps:
            (run.run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
            if not (run.run_dir / ".lock").exists():  # it is new, or an earlier run has just been moved aside with its lock
                held.enter_context(RunFolder.claim(run.run_dir))
            with complete_file(run.run_dir / "config.json") as temporary:
                temporary.write_text(json.dumps({"command": sys.argv, "settings": vars(args) | {"run_dir": str(run.run_dir)}, **about,
                                                 "torch": torch.__version__, "lightning": version("pytorch-lightning")}, indent=1) + "\n")
            Callbacks.write_grid(run.unseen.images[:36].float() / 127.5 - 1, run.run_dir / "samples" / "real.png")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"cannot write to {run.run_dir} ({error.strerror}): choose another --run-dir") from None
    return resume["path"] if resume else None


def fit(args: Namespace, run: Any, resume: dict[str, Any] | None, processes: Fabric, precision: Any, stop: Stop) -> int:
    """Train to the end, a signal, or a defeat; -> the exit status. Where training diverges, it goes back to the last good
    checkpoint and on with other noise, `GOING_BACK` times. Raises Refused where it cannot begin."""
    first, world, run_dir, model = processes.global_rank == 0, processes.world_size, run.run_dir, run.model
    nodes = getattr(processes.strategy, "num_nodes", 1)
    say = print if first else lambda *_, **__: None
    elapsed = 0.0
    while True:
        done = resume["global_step"] if resume else 0
        if done:
            say(f"going on at step {done} of {run_dir}", flush=True)
        ema = Callbacks.Ema(args.ema_decay)
        checkpoints = Callbacks.Checkpoints(run_dir, args.save_every, args.max_time, run.course, stop)
        checkpoints.elapsed = elapsed
        shown = [Callbacks.Preview(run_dir / "samples", ema, args.batch_size, stop), Callbacks.Progress(args.batch_size, checkpoints)]
        loggers = [Callbacks.MetricsCsv(run_dir / "metrics.csv", ["train_loss", "val_loss", *model.bin_names()], done),
                   TensorBoardLogger(run_dir, name="", version="tensorboard")] if first else []
        trainer = pl.Trainer(
            accelerator=processes.device.type, devices=world // nodes, num_nodes=nodes,
            strategy=DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True) if world > 1 else "auto",
            plugins=[RunFolder.CompleteCheckpointIO(resume), Devices.environment()], precision=precision, max_steps=args.max_steps,
            max_epochs=-1, gradient_clip_val=args.clip or None, val_check_interval=args.val_every, check_val_every_n_epoch=None,
            num_sanity_val_steps=0, log_every_n_steps=args.log_every, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, use_distributed_sampler=False, logger=loggers,
            callbacks=[ema, checkpoints, *(shown if first else [])],
            default_root_dir=run_dir / ".none")  # Lightning would load an hpc_ckpt_* that lies there
        try:
            trainer.fit(model, run.batches, run.validation, ckpt_path=resume["path"] if resume else None, weights_only=True)
        except (torch.OutOfMemoryError, MemoryError):
            raise Refused(f"out of memory at batch size {args.batch_size}: choose a smaller --batch-size or network") from None
        except OSError as error:
            print(f"train.py: cannot write to {run_dir} ({error.strerror}) at step {trainer.global_step}; "
                  f"{RunFolder.last(run_dir)}", file=sys.stderr)
            return 1
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            if not resume or checkpoints.started:
                raise
            raise Refused(f"checkpoint {resume['path']} cannot be gone on from ({type(error).__name__}: {error})") from None
        except RuntimeError as error:
            if world == 1 or not re.search("gloo|nccl|connection|peer", str(error), re.IGNORECASE):
                raise
            print(f"train.py: another process of this run is gone at step {trainer.global_step}; "
                  f"{RunFolder.last(run_dir)}; run the same command again to go on", file=sys.stderr, flush=True)
            os._exit(1)  # there is nobody to part from in good order
        at = f"at step {trainer.global_step} after {checkpoints.seconds():.0f} s"
        if signal := checkpoints.stopped_by:
            say(f"stopped by {signal.name} {at}; {RunFolder.last(run_dir)}; run the same command again to go on", flush=True)
            return 0 if Devices.started_here() else status(signal)
        if not checkpoints.diverged:
            say(f"trained{'' if trainer.global_step == args.max_steps else ', --max-time is over'}, {at}; checkpoint {checkpoints.saved}")
            return 0
        if model.stream == GOING_BACK:
            say(f"train.py: the loss is not finite {at}, for the {GOING_BACK + 1}th time; {RunFolder.last(run_dir)}; "
                "try a smaller --lr", file=sys.stderr)
            return 1
        stream, elapsed = model.stream + 1, checkpoints.seconds()
        # to where it would go back if it had never been stopped
        resume = Checkpoint.to_resume("auto", run_dir, model, run.course, args.save_every) if first else None
        path = processes.broadcast(resume["path"] if resume else None)
        resume = Checkpoint.read(path) if path else None
        say(f"the loss is not finite {at}: back to {resume['path'] if resume else 'the start'} with other noise, "
            f"{stream} of {GOING_BACK} times", file=sys.stderr, flush=True)
        if resume:
            resume["noise"], resume["elapsed"] = {"stream": stream, "skipped": 0}, elapsed
        torch.manual_seed(args.seed)
        model = DiffusionModel(**run.settings)
        model.stream = stream
        run.batches.load_state_dict({"epoch": 0, "batch": 0})
