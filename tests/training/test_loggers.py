"""The TensorBoard log of a run."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from training_runs import fit


def events(run_dir: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(
        str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "images": 0}
    )
    found.Reload()
    return found


def test_tensorboard_shows_the_pictures_and_after_a_resume_nothing_twice(
    tiny_data, tmp_path, capsys
):
    """As if killed after the validation of step 12 and before a checkpoint: it resumes from 10."""
    fit(tiny_data, tmp_path, "--max-steps", 15, "--save-every", 5)
    said = capsys.readouterr().out.splitlines()
    assert said[1] == (
        f"to follow the training: {tmp_path / 'samples'}, "
        f"and tensorboard --logdir {tmp_path.parent}"
    )
    for file in (tmp_path / "checkpoints").glob("step_00000015.*"):
        file.unlink()
    fit(tiny_data, tmp_path, "--max-steps", 18, "--save-every", 5)
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 2
    found = events(tmp_path)
    assert found.Tags()["images"] == ["real", "samples"]
    assert "hp_metric" not in found.Tags()["scalars"]
    assert [e.step for e in found.Scalars("train_loss")] == list(range(1, 19))
    assert [e.step for e in found.Scalars("val_loss")] == [6, 12, 18]
    assert [e.step for e in found.Images("real")] == [0]
    assert [e.step for e in found.Images("samples")] == [6, 12, 18]
    for shown in [*found.Images("samples"), *found.Images("real")]:
        file = tmp_path / "samples" / (f"step_{shown.step:08d}.png" if shown.step else "real.png")
        assert np.array_equal(
            np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))),
            np.asarray(Image.open(file)),
        )
