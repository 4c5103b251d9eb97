"""Malicious checkpoints, which run code if they are loaded without care."""

import os


class Bomb:
    """Its pickle creates the file `marker` when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def malicious(marker) -> dict:
    """The contents of a checkpoint with a `Bomb`."""
    empty = {"hyper_parameters": {}, "state_dict": {}, "course": {}, "global_step": 1}
    return empty | {"ema": Bomb(marker)}
