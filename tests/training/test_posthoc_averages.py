"""Snapshots of averages of the weights."""

from argparse import Namespace

from training_runs import fit

from checkpoints.checkpoint_file import read_checkpoint_file
from training.posthoc_averages import PowerEmas


def test_snapshots_are_at_multiples_of_save_every_wherever_a_run_was_stopped(tiny_data, tmp_path):
    """If there are too many, every second one is removed. A resumed run replaces later ones."""
    options = ("--posthoc-ema", "--save-every", 2)
    for at in (5, 9):
        fit(tiny_data, tmp_path / "run", "--max-steps", at, *options)

    def names():
        return [p.name[5:13] for p in sorted((tmp_path / "run" / "averages").glob("*.ckpt"))]

    assert names() == ["00000002", "00000004", "00000006", "00000008"]
    ((tmp_path / "run" / "averages") / "step_00000010.ckpt").write_bytes(b"of another run")
    fit(tiny_data, tmp_path / "run", "--max-steps", 11, *options)
    assert (
        len(read_checkpoint_file(tmp_path / "run" / "averages" / "step_00000010.ckpt")["weights"])
        == 2
    )
    few = PowerEmas(tmp_path / "run" / "averages", 2, most=3)
    few.on_save_checkpoint(Namespace(is_global_zero=True, global_step=12), None, {})
    assert names() == ["00000004", "00000008", "00000012"]


def test_a_longer_interval_keeps_the_snapshots_of_a_shorter_one(tmp_path):
    """They are thinned out only when the run is longer than `most` times the new interval."""

    def names():
        return [int(p.name[5:13]) for p in sorted(tmp_path.glob("*.ckpt"))]

    def save(averages, steps):
        for step in steps:
            state = Namespace(is_global_zero=True, global_step=step)
            averages.on_save_checkpoint(state, None, {})

    save(PowerEmas(tmp_path, 10, most=5), (10, 20, 30, 40, 50))
    longer = PowerEmas(tmp_path, 30, most=5)
    save(longer, (60,))
    assert names() == [10, 20, 30, 40, 50, 60]
    save(longer, (90, 120, 150, 180))
    assert names() == [60, 120, 180]
