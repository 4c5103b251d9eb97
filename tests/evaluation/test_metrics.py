"""Samples against real images: distances, memorization, sets of samples."""

import json

import pytest
from measuring import bits, measure
from PIL import Image

from sampling import sample_sets

pytestmark = pytest.mark.usefixtures("quick_classifier")


def test_samples_come_with_a_floor_a_ceiling_and_a_spread(fresh_run, tiny_data, capsys):
    table, found = measure(capsys, fresh_run, tiny_data, "--bound", "0", "--num", "30")
    one = found["distances"]["classifier"]
    assert (one["images"], one["sets"], one["to_train"]["images"], one["to_test"]["images"]) == (
        30,
        3,
        60,
        20,
    )
    assert (one["to_train"]["floor_images"], one["to_test"]["floor_images"]) == (20, 30)
    for to in ("to_train", "to_test"):
        for metric in ("frechet", "kernel", "precision", "recall"):
            value = one[to][metric]
            assert value["lowest"] <= value["mean"] <= value["highest"]
            assert value["mean"] == pytest.approx(sum(value["sets"]) / 3)
        assert one[to]["frechet"]["lowest"] < one[to]["frechet"]["highest"]
        assert one[to]["frechet"]["floor"] < one[to]["frechet"]["mean"]
        assert one[to]["frechet"]["mean"] < one[to]["frechet"]["ceiling"]
    assert one["sampling"]["seeds"] == [0, 1, 2]
    assert (
        one["sampling"]["sampler"],
        one["sampling"]["steps"],
        one["sampling"]["evaluations_each"],
    ) == ("unipc", 20, 20)
    assert sum(one["shares"]) == pytest.approx(1)
    assert one["class_names"] == ["0", "1"]
    assert "as_asked" not in one
    assert f"{one['to_train']['frechet']['floor']:.4f}" in next(
        line for line in table if "Frechet distance to 60 training" in line
    )
    assert any(
        line.startswith("memorization, 30 samples against 60 training images") for line in table
    )
    ratio = found["memorization"]["classifier"]["pixels"]["ratio"]
    distances = f"distance to training images / to unseen images {ratio:.3f}"
    assert any(distances in line for line in table)
    picture = Image.open(found["memorization"]["classifier"]["picture"])
    assert any("precision against 30 training images" in line for line in table)  # 30 samples
    assert picture.size == (3 * (9 * 10 + 2 * 6), 3 * 8 * 10)
    assert found["memorization"]["classifier"]["images"] == 30
    _, more = bits(capsys, fresh_run, tiny_data)  # is added to what is known of the same model
    written = json.loads((fresh_run / "metrics.json").read_text())
    assert written["distances"]["classifier"] == one
    assert written["bits_per_dim"]["bound"]["mean"] == more["bits_per_dim"]["bound"]["mean"]
    assert "fewer" not in one["to_test"]
    assert one["to_train"]["fewer"]["images"] == 20  # the floor is that of 20 unseen images
    assert one["to_train"]["fewer"]["frechet"]["mean"] != one["to_train"]["frechet"]["mean"]
    assert any("Frechet distance of 20 samples to the same images" in line for line in table)
    bits(capsys, fresh_run, tiny_data, "--weights", "raw")  # moves it to "earlier"
    written = json.loads((fresh_run / "metrics.json").read_text())
    assert "distances" not in written
    assert [
        (record["weights"], record["distances"]["classifier"]) for record in written["earlier"]
    ] == [("ema", one)]
    bits(capsys, fresh_run, tiny_data)
    written = json.loads((fresh_run / "metrics.json").read_text())
    assert written["distances"]["classifier"] == one
    assert [record["weights"] for record in written["earlier"]] == ["raw"]


def test_samples_of_other_weights_are_other_samples(conditional_run, tiny_data, capsys):
    """No sample is reused for other weights or another sampling plan."""
    found, folders = [], []
    for more in (
        (),
        ("--weights", "raw"),
        ("--ema-length", "0.1"),
        ("--steps", "3"),
        ("--guidance", "3"),
    ):
        before = (
            set((conditional_run / "evaluation").glob("*/seed7-*"))
            if (conditional_run / "evaluation").is_dir()
            else set()
        )
        found.append(
            measure(
                capsys,
                conditional_run,
                tiny_data,
                "--bound",
                "0",
                "--num",
                "12",
                "--seeds",
                "7",
                *more,
            )[1]
        )
        folders.append(
            {
                file.parent
                for file in set((conditional_run / "evaluation").glob("*/seed7-*")) - before
            }
        )
    assert [len(new) for new in folders] == [1] * 5
    assert len(set.union(*folders)) == 5
    assert (
        len({one["distances"]["classifier"]["to_train"]["frechet"]["mean"] for one in found}) == 5
    )


def test_a_stopped_evaluation_resumes(fresh_run, tiny_data, capsys, monkeypatch):
    """After a signal between two files, existing samples are reused and results are the same."""
    monkeypatch.setattr(sample_sets, "IMAGES_PER_FILE", 8)
    ask = ("--bound", "0", "--num", "24", "--seeds", "11")
    write, calls = sample_sets.sample_batch, []

    def stops(model, how, indices, seed):
        calls.append(indices)
        if indices.start == 16 and len(calls) < 6:
            raise KeyboardInterrupt
        return write(model, how, indices, seed)

    monkeypatch.setattr(sample_sets, "sample_batch", stops)
    with pytest.raises(KeyboardInterrupt):
        measure(capsys, fresh_run, tiny_data, *ask)
    calls.extend([range(0)] * 6)
    _, found = measure(capsys, fresh_run, tiny_data, *ask)
    assert [indices.start for indices in calls if len(indices)] == [
        0,
        0,
        8,
        16,
        0,
        16,
    ]  # one more at each start, to warm up
    for file in (fresh_run / "evaluation").glob("*/seed11-*"):
        file.unlink()
    assert (
        measure(capsys, fresh_run, tiny_data, *ask)[1]["distances"]["classifier"]["to_train"]
        == found["distances"]["classifier"]["to_train"]
    )


def test_the_share_of_requested_classes_is_measured(conditional_run, tiny_data, capsys):
    _, found = measure(
        capsys,
        conditional_run,
        tiny_data,
        "--bound",
        "0",
        "--num",
        "20",
        "--seeds",
        "0",
        "--guidance",
        "2",
    )
    one = found["distances"]["classifier"]
    assert 0 <= one["as_asked"]["mean"] <= 1
    assert (one["sampling"]["guidance"], one["sampling"]["evaluations_each"]) == (2, 40)
