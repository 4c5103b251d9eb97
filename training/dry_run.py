"""Estimate size, speed and duration of a training run from a few steps (--dry-run)."""

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from runtime.devices import peak_memory
from runtime.launcher import Machine
from training.batches import micro_batches
from training.fit import prepare_network
from training.setup import TrainingRun

SECONDS = 5  # time spent on measuring the speed


class Step:
    """A training step without the Trainer, always on the same batch."""

    def __init__(self, run: TrainingRun, machine: Machine):
        self.model = run.model.to(machine.device)
        self.batch = next(iter(run.batches))
        self.accumulate = run.settings.accumulate
        self.optimizer = self.model.configure_optimizers(1)["optimizer"]
        self.device = machine.device
        self.autocast = machine.precision == "bf16"

    @property
    def images(self) -> int:
        return len(self.batch[0])

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        loss = torch.zeros((), device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            for micro_batch in micro_batches(*self.batch, self.accumulate):
                loss = self.model.get_loss(micro_batch, 0) / self.accumulate
                loss.backward()
        self.optimizer.step()
        loss.item()  # waits for the device


def dry_run(run: TrainingRun, machine: Machine) -> None:
    """Measure and print the number of parameters, FLOPs, memory, speed and expected time."""
    settings, step = run.settings, Step(run, machine)
    # FLOPs cannot be counted in a compiled network.
    prepare_network(settings, step.model, step.images, "off", machine.precision)
    with FlopCounterMode(display=False) as flops:
        step()
    peak_memory(machine.device.type, reset=True)
    prepare_network(settings, step.model, step.images, settings.compile, machine.precision)
    step()
    rate = steps_per_second(step)
    seconds = min(settings.max_steps / rate, settings.max_time or float("inf"))
    steps = min(settings.max_steps, int(seconds * rate))
    parameters = sum(p.numel() for p in run.model.parameters())
    gflops = flops.get_total_flops() / step.images / 1e9
    memory = peak_memory(machine.device.type) / 2**30
    print(
        f"parameters   {parameters:,}\n"
        f"computation  {gflops:.2f} GFLOPs per image, forward and backward\n"
        f"memory       {memory:.2f} GiB\n"
        f"speed        {rate * step.images:.1f} images/s, {rate:.2f} steps/s "
        f"at batch {step.images}\n"
        f"time         {seconds / 3600:.1f} hours for {steps:,} steps, "
        "without validation and previews"
    )


def steps_per_second(step: Step) -> float:
    """Return the speed of training, measured for `SECONDS`."""
    began = time.monotonic()
    count = 0
    while time.monotonic() - began < SECONDS:
        step()
        count += 1
    return count / (time.monotonic() - began)
