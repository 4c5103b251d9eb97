"""Lightning still needs each workaround, and all but exit_without_teardown are tried here.

If a test fails after an update of Lightning, its workaround may no longer be needed.
"""

import signal

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.loggers.logger import Logger

from training import lightning_workarounds as workarounds

pytestmark = pytest.mark.filterwarnings("ignore")


class Logged(Logger):
    """Remember the steps at which the loss was logged."""

    name = "logged"
    version = ""

    def __init__(self):
        super().__init__()
        self.steps = []

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        if "loss" in metrics:
            self.steps.append(step)


class Model(BoringModel):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.randn(8, 32))


def trainer(tmp_path, *callbacks, **options) -> pl.Trainer:
    settings = dict(
        accelerator="cpu",
        devices=1,
        max_steps=3,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        logger=False,
        callbacks=list(callbacks),
    )
    return pl.Trainer(**{**settings, **options})


@pytest.mark.parametrize("applied", [False, True])
def test_signals_are_left_alone(tmp_path, applied):
    handlers = []

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            handlers.append(signal.getsignal(signal.SIGTERM))

    def own_handler(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, own_handler)
    try:
        t = trainer(tmp_path, Look())
        if applied:
            workarounds.leave_signals_alone(t)
        t.fit(Model())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (handlers == [own_handler]) == applied


@pytest.mark.parametrize("applied", [False, True])
def test_sigterm_is_not_broadcast_at_every_step(tmp_path, monkeypatch, applied):
    broadcasts = []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda *_, **__: broadcasts.append(1))
    monkeypatch.setattr(pl.Trainer, "world_size", property(lambda self: 2))
    torch.distributed.init_process_group(
        "gloo", rank=0, world_size=1, store=torch.distributed.HashStore()
    )
    try:
        t = trainer(tmp_path)
        if applied:
            workarounds.skip_sigterm_broadcast(t)
        t.fit(Model())
    finally:
        torch.distributed.destroy_process_group()
    assert len(broadcasts) == (0 if applied else 3)


SLURM = {
    "SLURM_NTASKS": "1",
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NAME": "ddpm",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS_PER_NODE": "1",
}


@pytest.mark.parametrize("applied", [False, True])
def test_a_checkpoint_in_the_root_directory_is_not_loaded(tmp_path, monkeypatch, applied):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    earlier = trainer(tmp_path, max_steps=2)
    earlier.fit(Model())
    earlier.save_checkpoint(tmp_path / "hpc_ckpt_1.ckpt")
    first_steps = []

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            first_steps.append(trainer.global_step)

    root = workarounds.unused_root_dir(tmp_path) if applied else tmp_path
    trainer(tmp_path, Look(), default_root_dir=root).fit(Model())
    assert first_steps == ([0] if applied else [2])
    assert not workarounds.unused_root_dir(tmp_path).exists()


@pytest.mark.parametrize("applied", [False, True])
def test_a_run_that_is_stopped_logs_nothing_more(tmp_path, applied):
    class Stopped(Model):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)["loss"]
            if not applied:
                self.log("loss", loss)
            return loss

    class StopAtThree(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, *_):
            trainer.should_stop = trainer.global_step == 3
            if applied and trainer.global_step % 2 == 0:
                loss = float(outputs["loss"].detach())
                workarounds.log_now(trainer, {"loss": loss}, trainer.global_step)

    logged = Logged()
    t = trainer(tmp_path, StopAtThree(), max_steps=10, log_every_n_steps=2, logger=logged)
    t.fit(Stopped())
    assert logged.steps == ([1] if applied else [1, 2])


def test_the_trainer_tears_down_after_an_exception(tmp_path):
    """If another process is gone, the teardown would wait for a collective that cannot complete.
    `on_exception` is called before the teardown and can end this process."""
    events = []

    class Fails(Model):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("a process is gone")

    class Look(pl.Callback):
        def on_exception(self, trainer, pl_module, exception):
            events.append("on_exception")

    t = trainer(tmp_path, Look())
    t.strategy.teardown = lambda: events.append("teardown")
    with pytest.raises(RuntimeError):
        t.fit(Fails())
    assert events == ["on_exception", "teardown"]


class SaveAtTwo(pl.Callback):
    """Save step 2 before its validation."""

    def __init__(self, file):
        self.file = file

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.file)


class Validated(pl.Callback):
    """Remember whether training started and ended, and the steps that were validated."""

    def __init__(self, at_start=lambda trainer: None):
        self.at_start = at_start
        self.steps, self.called = [], []

    def on_train_start(self, trainer, pl_module):
        self.called.append("start")
        self.at_start(trainer)

    def on_train_end(self, trainer, pl_module):
        self.called.append("end")

    def on_validation_end(self, trainer, pl_module):
        self.steps.append(trainer.global_step)


ONCE = dict(limit_val_batches=2, val_check_interval=2, num_sanity_val_steps=0)


@pytest.mark.parametrize("applied", [False, True])
def test_the_validation_of_a_resumed_step_is_made_up_for(tmp_path, applied):
    file = tmp_path / "x.ckpt"
    trainer(tmp_path, SaveAtTwo(file), max_steps=2, **ONCE).fit(Model())
    seen = Validated(workarounds.validate_now if applied else lambda trainer: None)
    trainer(tmp_path, seen, max_steps=4, **ONCE).fit(Model(), ckpt_path=file)
    assert seen.steps == ([2, 4] if applied else [4])


@pytest.mark.parametrize("applied", [False, True])
def test_training_starts_even_if_no_step_is_left(tmp_path, applied):
    file = tmp_path / "x.ckpt"
    trainer(tmp_path, SaveAtTwo(file), max_steps=2, **ONCE).fit(Model())
    seen = Validated(workarounds.validate_now if applied else lambda trainer: None)
    t = trainer(tmp_path, seen, max_steps=2, **ONCE)
    if applied:
        workarounds.start_without_steps(t)
    t.fit(Model(), ckpt_path=file)
    assert seen.called == (["start", "end"] if applied else [])
    assert seen.steps == ([2] if applied else [])
