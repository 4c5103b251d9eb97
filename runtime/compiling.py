"""torch.compile for a network and one batch size.

    compile_network(model, "default", batch_size, "bf16")            # before training or sampling
    with eager(): ...                                               # validation, previews

Everything else runs eagerly, because compiling takes a minute for each batch size and mode.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from runtime.devices import tf32


def compile_network(
    model: Any, mode: str, B: int, precision: str, say: Callable[..., Any] = print
) -> bool:
    """Compile `model.unet` for B images with this mode of torch.compile; "off" does nothing.

    It is compiled for training if the model is in training mode, and for sampling otherwise. If it
    cannot be compiled, print the reason, return False, and continue uncompiled. In sampling, other
    batch sizes run eagerly afterwards. Raises torch.OutOfMemoryError.
    """
    if mode == "off":
        return True
    keep_compiled_code()
    waiting = "; signals wait until it is done" if model.training else ""
    say(
        f"compiling the network: a minute or more, and less the next time{waiting}",
        file=sys.stderr,
        flush=True,
    )
    began = time.monotonic()
    torch.compiler.set_stance("default")
    model.unet.compile(mode=mode)
    failure = warm_up(model.unet, model.unet.example(B), precision)
    if failure:
        run_eagerly()
        say(
            f"--compile {mode} does not work here ({failure}): continuing without it",
            file=sys.stderr,
            flush=True,
        )
        return False
    say(f"compiled in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if not model.training:
        torch.compiler.set_stance("eager_on_recompile")
        # CUDA graphs write every output into the same memory.
        model.register_forward_hook(lambda module, inputs, output: output.clone())
    return True


def keep_compiled_code() -> None:
    """Let torch keep compiled code in $XDG_CACHE_HOME/torchinductor, by default in ~/.cache.

    The next start is then faster. torch itself keeps it in /tmp, which clusters empty after a job.
    TORCHINDUCTOR_CACHE_DIR sets another folder. Does nothing if the folder cannot be written to.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(cache) / "torchinductor"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def warm_up(net: torch.nn.Module, inputs: tuple[Any, ...], precision: str) -> str:
    """Run the network, in training also backward. Return "", or the error in one line."""
    device = inputs[0].device.type
    try:
        for _ in range(3):  # CUDA graphs are recorded the second time, and replayed the third
            with (
                torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"),
                tf32(precision == "tf32"),
                torch.set_grad_enabled(net.training),
            ):
                loss = net(*inputs).float().sum()
            if net.training:
                loss.backward()
            net.zero_grad()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # many kinds: no compiler, or a device that is too old for it
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        return " ".join(reason.split())[:120]
    finally:
        net.zero_grad()
    return ""


def run_eagerly() -> None:
    """Ignore all compiled code from now on."""
    if "torch._dynamo" in sys.modules:  # slow to import; without it nothing was compiled
        torch.compiler.set_stance("force_eager")


def eager() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which compiled code is ignored and nothing is compiled."""
    if "torch._dynamo" in sys.modules:
        return torch.compiler.set_stance("force_eager")
    return contextlib.nullcontext()
