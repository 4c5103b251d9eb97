"""A resumed run equals an uninterrupted one."""

import pytest
from conftest import TINY
from training_runs import contents, fit, losses, same

import train

CHOICES = (
    "--schedule cosine --zero-terminal-snr --parameterization v --variance learned --weighting edm"
    " --t-sampling stratified --augment 0.5 --class-conditional --label-dropout 0.5 --posthoc-ema"
    " --optimizer muon"
).split()


@pytest.mark.parametrize(
    ("dropout", "at", "choices"),
    [
        (0, 5, ()),
        (0.3, 6, ()),
        pytest.param(0, 7, (), marks=pytest.mark.slow),
        pytest.param(0.3, 9, (), marks=pytest.mark.slow),
        (0.3, 8, CHOICES),
    ],
)
def test_a_resumed_run_is_the_run_that_was_not_stopped(tiny_data, tmp_path, dropout, at, choices):
    """Every loss, weight and average to the last bit. 7 batches an epoch, validation at 6 and
    12."""
    options = ("--dropout", dropout, "--flip", *choices)
    fit(tiny_data, tmp_path / "whole", "--max-steps", 17, *options)
    fit(tiny_data, tmp_path / "parts", "--max-steps", at, *options)
    fit(tiny_data, tmp_path / "parts", "--max-steps", 17, *options)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert len(losses(tmp_path / "whole")) == 17
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert same(whole["state_dict"], parts["state_dict"])
    assert whole["ema"]["n"] == parts["ema"]["n"] == 17
    assert same(whole["ema"]["weights"], parts["ema"]["weights"])
    for a, b in zip(whole.get("power", ()), parts.get("power", ())):
        assert same(a, b)
    assert ("power" in whole) == bool(choices)


def test_a_falling_rate_depends_on_the_step_and_max_steps_alone(tiny_data, tmp_path):
    options = ("--max-steps", 12, "--lr-schedule", "linear", "--optimizer", "muon")
    fit(tiny_data, tmp_path / "whole", *options)
    fit(tiny_data, tmp_path / "parts", *options, "--max-time", "0.001s")
    assert contents(tmp_path / "parts")["global_step"] < 12
    fit(tiny_data, tmp_path / "parts", *options)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert same(*(contents(tmp_path / name)["state_dict"] for name in ("whole", "parts")))


def test_training_losses_do_not_depend_on_where_a_run_was_stopped(tiny_data, tmp_path):
    fit(tiny_data, tmp_path / "whole", "--max-steps", 17, "--log-every", 4)
    for at in (6, 11, 17):
        fit(tiny_data, tmp_path / "parts", "--max-steps", at, "--log-every", 4)
    assert list(losses(tmp_path / "whole")) == [4, 8, 12, 16]
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_a_finished_run_is_not_trained_again_and_resume_none_starts_over(
    tiny_data, tmp_path, capsys
):
    fit(tiny_data, tmp_path / "run", "--max-steps", 3)
    before = contents(tmp_path / "run")
    assert fit(tiny_data, tmp_path / "run", "--max-steps", 3) == 0
    assert "already trained, 3 steps in" in capsys.readouterr().out
    fit(tiny_data, tmp_path / "run", "--max-steps", 2, "--resume", "none")
    assert "the earlier run is now in" in capsys.readouterr().out
    assert contents(tmp_path / "run")["global_step"] == 2
    assert same(contents(tmp_path / "run.1")["state_dict"], before["state_dict"])


def test_max_time_ends_a_run_and_counts_across_resumes(tiny_data, tmp_path, capsys):
    fit(tiny_data, tmp_path, "--max-steps", 100_000, "--max-time", "2s")
    assert "because of --max-time; checkpoint" in capsys.readouterr().out
    first = contents(tmp_path)
    assert 0 < first["global_step"] < 100_000
    fit(tiny_data, tmp_path, "--max-steps", 100_000, "--max-time", "2s")
    assert "already trained" in capsys.readouterr().out
    assert contents(tmp_path)["global_step"] == first["global_step"]


def test_going_back_to_an_older_checkpoint_spoils_nothing(refused, tiny_data, tmp_path):
    fit(tiny_data, tmp_path / "run", "--max-steps", 7, "--save-every", 4)
    older = tmp_path / "run" / "checkpoints" / "step_00000004.ckpt"
    options = ["--dataset", tiny_data, *TINY, "--resume", older, "--max-steps", "9"]
    assert "choose another --run-dir" in refused(
        train.main, *options, "--run-dir", tmp_path / "run"
    )
    assert train.main([*map(str, options), "--run-dir", str(tmp_path / "branch")]) == 0
    fit(tiny_data, tmp_path / "whole", "--max-steps", 9)
    assert same(
        contents(tmp_path / "branch")["state_dict"], contents(tmp_path / "whole")["state_dict"]
    )
    again = [
        *map(str, options[:-1]),
        "10",
        "--resume",
        str(tmp_path / "whole"),
        "--run-dir",
        str(tmp_path / "from_a_folder"),
    ]
    assert train.main(again) == 0
    assert contents(tmp_path / "from_a_folder")["global_step"] == 10


def test_two_checkpoints_are_kept(tiny_data, tmp_path):
    fit(tiny_data, tmp_path, "--max-steps", 7, "--save-every", 2)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step_00000006.ckpt",
        "step_00000006.ckpt.sha256",
        "step_00000007.ckpt",
        "step_00000007.ckpt.sha256",
    ]


@pytest.mark.parametrize("lost", ["validation", "preview"])
@pytest.mark.parametrize("at", [6, 12])
def test_a_validation_lost_to_a_kill_is_done_after_the_resume(
    tiny_data, tmp_path, capsys, at, lost
):
    """The checkpoint of step `at` was saved before the validation of the same step."""
    fit(tiny_data, tmp_path / "whole", "--max-steps", 12)
    fit(tiny_data, tmp_path / "parts", "--max-steps", at)
    metrics, preview = tmp_path / "parts" / "metrics.csv", f"samples/step_{at:08d}.png"
    rows = metrics.read_text().splitlines(keepends=True)
    if lost == "validation":
        metrics.write_text("".join(row for row in rows if not row.startswith(f"{at},,")))
    (tmp_path / "parts" / preview).unlink()
    capsys.readouterr()
    assert fit(tiny_data, tmp_path / "parts", "--max-steps", 12) == 0
    assert "checkpoint None" not in capsys.readouterr().out
    assert metrics.read_text() == (tmp_path / "whole" / "metrics.csv").read_text()
    assert (tmp_path / "parts" / preview).read_bytes() == (
        tmp_path / "whole" / preview
    ).read_bytes()
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert same(whole["state_dict"], parts["state_dict"])
    assert fit(tiny_data, tmp_path / "parts", "--max-steps", 12) == 0
    assert "is already trained" in capsys.readouterr().out


def test_all_settings_that_differ_are_named_as_flags(refused, tiny_data, tiny_run):
    words = ["--dataset", tiny_data, "--run-dir", tiny_run, *TINY, "--max-steps", "99"]
    line = refused(train.main, *words, "--film", "--weighting", "min-snr", "--mults", "1,1")
    before, now = line[line.index("was trained with ") :].split(": give")[0].split(", not ")
    assert sorted(before.split()[3:]) == ["--mults", "--no-film", "--weighting", "1,2", "plain"]
    assert sorted(now.split()) == ["--film", "--mults", "--weighting", "1,1", "min-snr"]
