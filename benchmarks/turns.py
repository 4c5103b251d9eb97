"""A contender in the speed comparison: it trains and samples on command.

    Contender(args, net, optimizer, draw, step).run()

It reads commands from standard input, one on each line: see contender.py.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from Dataset import DiffSet, to_float
from runtime import devices
from runtime.compiling import eager

ANSWERS = sys.stdout  # kept here: what train.py prints is redirected


class Contender:
    """A way to train and to sample.

    net: the network, net(x, t) -> Tensor. optimizer: that of its weights. draw(n): sample a batch
    in n steps. step: a training step, or None if another loop calls `before_step`. package: the
    package whose version is reported. flops: FLOPs of a step, if there is no network to count.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        net: Any,
        optimizer: Any,
        draw: Callable[[int], Any],
        step: Callable[[], Any] | None = None,
        bf16: bool = False,
        channels_last: bool = False,
        package: str = "",
        flops: float | None = None,
    ):
        self.args, self.net, self.optimizer, self.draw = args, net, optimizer, draw
        self.step, self.package, self.flops = step, package, flops
        self.bf16 = bf16
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.left, self.began = 0, 0.0

    def before_step(self) -> None:
        """Answer commands, and return when another training step is due."""
        while self.left == 0:
            if self.began:
                say(seconds=seconds_since(self.began, self.args.device))
            what, count = (sys.stdin.readline() or "exit 0").split()
            self.began = 0.0
            if what == "exit":
                sys.exit()
            elif what == "train":
                self.left, self.began = int(count), time.perf_counter()
            elif what == "about":
                say(**self.about())
            else:
                began = time.perf_counter()
                self.bare(int(count)) if what == "bare" else self.draw(int(count))
                say(seconds=seconds_since(began, self.args.device))
        self.left -= 1

    def run(self) -> None:
        assert self.step
        while True:
            self.before_step()
            self.step()

    def bare(self, count: int) -> None:
        if self.flops is not None and self.step:  # convolutions or matmul: no training loop
            for _ in range(count):
                self.step()
            return
        x = torch.randn(self.args.batch, 3, 32, 32, device=self.args.device).contiguous(
            memory_format=self.format
        )
        t = torch.arange(self.args.batch, device=self.args.device)
        for _ in range(count):
            with torch.autocast(self.args.device, torch.bfloat16, enabled=self.bf16):
                loss = F.mse_loss(self.net(x, t).float(), x)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.optimizer.zero_grad()

    def about(self) -> dict[str, Any]:
        if self.flops is None:
            # FLOPs cannot be counted in compiled code
            with eager(), FlopCounterMode(display=False) as counter:
                self.bare(1)
            self.flops = counter.get_total_flops()
        return {
            "parameters": sum(p.numel() for p in self.net.parameters()) if self.net else 0,
            "flops": self.flops,
            "memory": devices.peak_memory(self.args.device),
            "version": version(self.package) if self.package else "",
        }


def say(**found: Any) -> None:
    print(json.dumps(found), file=ANSWERS, flush=True)


def seconds_since(began: float, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def zero_rate_adam(net: Any) -> torch.optim.Optimizer:
    """Return an optimizer that takes its usual time but does not change the weights.

    With it, a network can be timed while it is being trained.
    """
    return torch.optim.Adam(net.parameters(), lr=0.0, fused=True)


def has_bf16(device: str) -> bool:
    """Whether bf16 is the fast precision on this device."""
    return devices.pick_precision(device, "auto") == "bf16"


def images(args: argparse.Namespace) -> Tensor:
    """One batch (B,3,32,32) of the built-in shapes, in [-1,1]."""
    return to_float(DiffSet(True, "shapes", "data", 32).images[: args.batch]).to(args.device)
