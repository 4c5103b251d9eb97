"""The result of one check of a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """good: None where it could not be checked. advice: what helps where it is not good."""

    name: str
    good: bool | None
    observation: str
    advice: str = ""
