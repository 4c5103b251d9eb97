"""Checks of a run directory: each finding says what was checked, what was found and what may help.

    for finding in examine(Path("runs/cifar10")): ...
    print(report(findings))

It reads metrics.csv, config.json, the newest checkpoint, images/samples.npz (written by run.sh),
the dataset if it is on disk, and the other run directories in the same folder.
"""

from pathlib import Path

from checkpoints.run_dir import read_run_settings, run_dir_of
from evaluation.checkpoint_checks import check_checkpoint
from evaluation.finding import Finding
from evaluation.loss_checks import check_losses
from evaluation.sample_checks import check_samples

MARKS = {True: "ok  ", False: "LOOK", None: "-   "}


def examine(run_dir: Path, dataset: str | None = None, root: str = "data") -> list[Finding]:
    """All findings of a run directory.

    dataset: by default the one in config.json. Raises ValueError or OSError with a one-line message
    if this is not a run directory.
    """
    run_dir = run_dir_of(run_dir)
    if not run_dir.is_dir() or not (run_dir / "metrics.csv").is_file():
        raise ValueError(
            f"{run_dir} is not a run directory: --doctor reads the metrics.csv of one "
            "that train.py has written"
        )
    config = read_run_settings(run_dir)
    value_range = None if dataset else config.get("value_range")
    if config.get("condition"):  # all samples have the same condition
        observation = "those of an image-conditional model are not checked"
        samples = [Finding("samples", None, observation)]
    else:
        samples = check_samples(run_dir, dataset or config.get("dataset"), root, value_range)
    return [*check_losses(run_dir, config), *check_checkpoint(run_dir), *samples]


def report(findings: list[Finding]) -> str:
    """Return a line for each finding, with advice below each problem, and a summary."""
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.good]}  {finding.name}: {finding.observation}")
        if finding.good is False:
            lines.append(f"      {finding.advice}")
    wrong = sum(finding.good is False for finding in findings)
    unchecked = sum(finding.good is None for finding in findings)
    summary = f"{wrong} of {len(findings)} look wrong" if wrong else "nothing looks wrong"
    if unchecked:
        summary += f"; {unchecked} could not be checked"
    return "\n".join([*lines, summary])
