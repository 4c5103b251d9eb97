"""The result of one check of a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One result. good: None if it could not be checked. advice: what to do if it is not good."""

    name: str
    good: bool | None
    observation: str
    advice: str = ""
