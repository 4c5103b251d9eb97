"""evaluate.py by command: what it measures, prints, writes and refuses."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import QUICK, ROOT
from PIL import Image

import evaluate
from checkpoints.checkpoint import load_model
from Dataset import DiffSet
from diffusion import likelihood
from evaluation import bits_per_dim, metrics, results
from evaluation.features import load_feature_extractor
from evaluation.real_images import RealImages
from runtime.randomness import Purpose
from sampling import sample_sets
from sampling.noise import Noise

pytestmark = pytest.mark.usefixtures("quick_classifier")


def measure(capsys, run, data, *more):
    """Run evaluate.py; return the lines of the table and the line of JSON.

    metrics.json must have the same numbers.
    """
    assert (
        evaluate.main(
            [
                "--ckpt",
                str(run),
                "--dataset",
                str(data),
                "--data-root",
                str(data.parent),
                "--device",
                "cpu",
                "--precision",
                "32",
                *more,
            ]
        )
        == 0
    )
    *table, said, line = capsys.readouterr().out.splitlines()
    assert said == f"  written to {run / 'metrics.json'}"
    found, written = json.loads(line), json.loads((run / "metrics.json").read_text())
    terms = (
        written.get("bits_per_dim", {}).get("bound", {}).pop("terms", None)
    )  # a thousand numbers are for the file alone
    for name, value in found.items():
        assert written[name] == value or value.items() <= written[name].items()
    return table, found | {"terms": terms}


@pytest.fixture
def run(tiny_run):
    """`tiny_run`, with nothing measured yet."""
    (tiny_run / "metrics.json").unlink(missing_ok=True)
    return tiny_run


def bits(capsys, run, data, *more):
    return measure(capsys, run, data, "--num", "0", "--bound", "20", *more)


# ---- bits/dim ------------------------------------------------------------------------------------


def test_bits_per_dim_as_a_table_and_a_line(run, tiny_data, capsys):
    table, found = bits(capsys, run, tiny_data, "--terms", "4", "--flow", "3")
    assert found["bits_per_dim"]["bound"]["images"] == 20
    assert found["bits_per_dim"]["flow"]["images"] == 3
    assert "mean_28x28" not in found["bits_per_dim"]["bound"]
    assert (found["weights"], found["step"], found["bits_per_dim"]["bound"]["seed"]) == (
        "ema",
        12,
        0,
    )
    assert found["checkpoint"] == str(run / "checkpoints" / "step_00000012.ckpt")
    assert (
        f"{found['checkpoint_sha256']}  step_00000012.ckpt\n"
        == (run / "checkpoints" / "step_00000012.ckpt.sha256").read_text()
    )
    assert f"{found['bits_per_dim']['bound']['mean']:.3f} +- " in table[1]
    assert "probability flow" in table[2]


def test_a_run_directory_knows_its_images(tiny_run, tiny_data, tmp_path, capsys):
    """Also of a folder or a file, whose name alone is in a checkpoint."""
    for given, known in (((), True), (("--dataset", tmp_path / "other.npz"), False)):
        with np.load(tiny_data) as archive:
            np.savez(
                tmp_path / "other.npz",
                **{
                    name: 255 - part if "images" in name else part for name, part in archive.items()
                },
            )
        assert (
            evaluate.main(
                [
                    "--ckpt",
                    str(tiny_run),
                    "--device",
                    "cpu",
                    "--num",
                    "0",
                    "--bound",
                    "4",
                    *map(str, given),
                ]
            )
            == 0
        )
        out = capsys.readouterr().out
        assert ("not the images that it was trained on" not in out) == known
        line = json.loads(out.splitlines()[-1])
        assert (line["trained_on"] == line["train_digest"]) == known
        assert line["dataset"] == ("tiny" if known else "other")


def test_averages_of_other_lengths_are_measured_too(conditional_run, tiny_data, capsys):
    found = [
        bits(capsys, conditional_run, tiny_data, "--terms", "2", *more)[1]
        for more in ((), ("--ema-length", "0.1"))
    ]
    assert [one["weights"] for one in found] == ["ema", "ema of length 0.1"]
    assert found[0]["bits_per_dim"]["bound"]["mean"] != found[1]["bits_per_dim"]["bound"]["mean"]


def test_neither_batches_nor_more_images_change_what_is_measured(run, tiny_data, capsys):
    (_, whole), (_, parts) = (
        bits(capsys, run, tiny_data, "--exact", "--batch-size", n) for n in ("20", "7")
    )
    assert whole["bits_per_dim"]["bound"]["mean"] == pytest.approx(
        parts["bits_per_dim"]["bound"]["mean"], rel=1e-5
    )
    assert whole["terms"] == pytest.approx(parts["terms"], rel=1e-4, abs=1e-7)
    _, other = bits(capsys, run, tiny_data, "--exact", "--seeds", "1")
    assert other["bits_per_dim"]["bound"]["mean"] != whole["bits_per_dim"]["bound"]["mean"]
    model, test_set = load_model(run).model, DiffSet(False, str(tiny_data), image_size=8)
    few, many = (
        bits_per_dim.variational_bound(model, test_set, count, None, title="")["mean"] * count
        for count in (7, 8)
    )
    last = test_set.subset()[7:8]  # the eighth has the same noise as among twenty
    noise = Noise(0, last.tolist(), (3, 8, 8), purpose=Purpose.LIKELIHOOD_NOISE)
    alone = likelihood.bound(model, test_set.images[last].float() / 127.5 - 1, noise).sum(0)
    assert many - few == pytest.approx(float(alone), rel=1e-3)


def test_exact_is_the_bound_and_its_terms_are_its_sum(run, tiny_data, capsys):
    table, found = bits(capsys, run, tiny_data, "--exact")
    bound = found["bits_per_dim"]["bound"]
    assert len(found["terms"]) == 21  # T = 20, L_0 .. L_T
    assert sum(found["terms"]) == pytest.approx(bound["mean"])
    assert sum(float(line.split()[-1]) for line in table[2:]) == pytest.approx(
        bound["mean"], abs=1e-3
    )
    model, test_set = load_model(run).model, DiffSet(False, str(tiny_data), image_size=8)
    x_0 = test_set.images.float() / 127.5 - 1
    again = likelihood.bound(
        model, x_0, Noise(0, range(20), (3, 8, 8), purpose=Purpose.LIKELIHOOD_NOISE)
    ).sum(0)
    assert len(again) == 20
    assert float(again.mean()) == pytest.approx(bound["mean"], rel=1e-5)
    assert bound["standard_error"] == pytest.approx(
        float(again.std()) / len(again) ** 0.5, rel=1e-4
    )


def test_the_bound_depends_on_the_labels(conditional_run, tiny_data, capsys):
    """A conditional model gets the labels: with other labels its bound is different."""
    _, found = bits(capsys, conditional_run, tiny_data, "--exact")
    model, test_set = (
        load_model(conditional_run).model,
        DiffSet(False, str(tiny_data), image_size=8),
    )
    x_0 = test_set.images[:20].float() / 127.5 - 1
    right, wrong = (
        float(
            likelihood.bound(
                model, x_0, Noise(0, range(20), (3, 8, 8), purpose=Purpose.LIKELIHOOD_NOISE), y
            )
            .sum(0)
            .mean()
        )
        for y in (test_set.labels[:20], 1 - test_set.labels[:20])
    )
    assert found["bits_per_dim"]["bound"]["mean"] == pytest.approx(right, rel=1e-5)
    assert right != pytest.approx(wrong, rel=1e-4)


def test_padded_digits_are_also_counted_by_their_own_values():
    test_set = type("Unseen", (), {"padded": True})
    found = bits_per_dim.summarize(torch.tensor([1.0, 3.0]), test_set)
    assert found["mean"] == 2
    assert found["mean_28x28"] == pytest.approx(2 * 1024 / 784)
    assert found["standard_error"] == pytest.approx(1)


# ---- samples -------------------------------------------------------------------------------------


def test_samples_come_with_a_floor_a_ceiling_and_a_spread(run, tiny_data, capsys):
    table, found = measure(capsys, run, tiny_data, "--bound", "0", "--num", "30")
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
    assert any(f"distance to training / to unseen images {ratio:.3f}" in line for line in table)
    picture = Image.open(found["memorization"]["classifier"]["picture"])
    assert any("precision to 30 training images" in line for line in table)  # as many as samples
    assert picture.size == (3 * (9 * 10 + 2 * 6), 3 * 8 * 10)
    assert found["memorization"]["classifier"]["images"] == 30
    _, more = bits(capsys, run, tiny_data)  # is added to what is known of the same model
    written = json.loads((run / "metrics.json").read_text())
    assert written["distances"]["classifier"] == one
    assert written["bits_per_dim"]["bound"]["mean"] == more["bits_per_dim"]["bound"]["mean"]
    assert "fewer" not in one["to_test"]
    assert one["to_train"]["fewer"]["images"] == 20  # the floor is that of 20 unseen images
    assert one["to_train"]["fewer"]["frechet"]["mean"] != one["to_train"]["frechet"]["mean"]
    assert any("Frechet distance of 20 samples to them" in line for line in table)
    bits(capsys, run, tiny_data, "--weights", "raw")  # and put aside for another
    written = json.loads((run / "metrics.json").read_text())
    assert "distances" not in written
    assert [
        (record["weights"], record["distances"]["classifier"]) for record in written["earlier"]
    ] == [("ema", one)]
    bits(capsys, run, tiny_data)
    written = json.loads((run / "metrics.json").read_text())
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


def test_stopped_and_run_again_it_goes_on(run, tiny_data, capsys, monkeypatch):
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
        measure(capsys, run, tiny_data, *ask)
    calls.extend([range(0)] * 6)
    _, found = measure(capsys, run, tiny_data, *ask)
    assert [indices.start for indices in calls if len(indices)] == [
        0,
        0,
        8,
        16,
        0,
        16,
    ]  # one more at each start, to warm up
    for file in (run / "evaluation").glob("*/seed11-*"):
        file.unlink()
    assert (
        measure(capsys, run, tiny_data, *ask)[1]["distances"]["classifier"]["to_train"]
        == found["distances"]["classifier"]["to_train"]
    )


def test_what_was_measured_before_a_failure_is_kept(run, tiny_data, capsys, monkeypatch):
    def fails(*_, **__):
        raise ValueError("the probability flow cannot be followed: a test")

    monkeypatch.setattr(bits_per_dim, "flow", fails)
    assert (
        evaluate.main(
            ["--ckpt", str(run), "--device", "cpu", "--bound", "4", "--num", "0", "--flow", "2"]
        )
        == 2
    )
    assert "cannot be followed" in capsys.readouterr().err
    assert json.loads((run / "metrics.json").read_text())["bits_per_dim"]["bound"]["images"] == 4


def test_what_is_not_finite_is_null(tmp_path):
    identity = dict.fromkeys(results.IDENTITY, "x")
    results.write_metrics(
        tmp_path / "metrics.json",
        identity,
        {"distances": {"classifier": {"frechet": {"sets": [1.0, float("nan")]}}}},
    )
    assert json.loads((tmp_path / "metrics.json").read_text())["distances"]["classifier"][
        "frechet"
    ]["sets"] == [1, None]


def test_the_classes_asked_for_are_looked_for(conditional_run, tiny_data, capsys):
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


def test_labels_of_real_images_are_all_as_asked(tiny_data, tmp_path):
    """Where the samples are the real images, all classes are right and every distance is 0."""
    data = DiffSet(True, str(tiny_data), image_size=8)
    classifier = load_feature_extractor("classifier", data, data, tiny_data.parent)
    real = RealImages(data, data, tmp_path)
    found = metrics.distances(classifier, [data.images], real, labels=data.labels)
    assert found["as_asked"]["mean"] == 1
    assert found["shares"] == pytest.approx(found["real_shares"])
    assert found["to_train"]["frechet"]["mean"] == pytest.approx(0, abs=1e-4)
    assert (found["to_train"]["precision"]["mean"], found["to_train"]["recall"]["mean"]) == (1, 1)
    audit, _ = metrics.memorization(classifier, data.images, real)
    assert (audit["pixels"]["copies"], audit["features"]["copies"]) == (1, 1)


def test_images_sorted_by_class_are_measured_as_if_they_were_mixed(tmp_path):
    """A folder's images come class by class: a subset has images of all classes."""
    labels = np.arange(4).repeat(100)
    images = np.full((400, 8, 8, 3), 60, np.uint8) * (labels[:, None, None, None] + 1).astype(
        np.uint8
    )
    np.savez(tmp_path / "sorted.npz", train_images=images, train_labels=labels)
    data = DiffSet(True, str(tmp_path / "sorted.npz"), image_size=8)
    assert sorted(data.subset().tolist()) == list(range(360))
    assert set(np.bincount(data.labels[data.subset(100)]) // 15) <= {1, 2}
    assert torch.equal(data.subset(50), data.subset()[:50])
    labels = [y for _, _, y in bits_per_dim.batches(data, 40, 10, "cpu", "")]
    assert [len(set(y.tolist())) for y in labels] == [4, 4, 4, 4]


def test_two_processes_measure_what_one_does(run, tiny_data, capsys, tmp_path):
    _, one = measure(
        capsys, run, tiny_data, "--bound", "0", "--num", "520", "--steps", "1", "--seeds", "5,6"
    )  # two files a seed
    for file in (run / "evaluation").glob("*/seed*.npz"):
        file.unlink()
    command = [
        sys.executable,
        "evaluate.py",
        "--ckpt",
        str(run),
        "--dataset",
        str(tiny_data),
        "--data-root",
        str(tiny_data.parent),
        "--device",
        "cpu",
        "--precision",
        "32",
        "--bound",
        "0",
        "--num",
        "520",
        "--steps",
        "1",
        "--seeds",
        "5,6",
        "--devices",
        "2",
    ]
    changes = [f"classifier.{name} = {value}" for name, value in QUICK.items()]
    (tmp_path / "sitecustomize.py").write_text(
        "\n".join(["from evaluation import classifier", *changes])
    )
    process = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
    )
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    two = json.loads(process.stdout.splitlines()[-1])
    assert two["distances"]["classifier"]["to_train"] == one["distances"]["classifier"]["to_train"]
    assert two["memorization"] == one["memorization"]


def test_a_sweep_has_a_row_for_each_and_a_plot(run, tiny_data, capsys):
    table, found = measure(
        capsys,
        run,
        tiny_data,
        "--num",
        "20",
        "--seeds",
        "0,1",
        "--sweep",
        "sampler,steps",
        "--sampler",
        "heun,dpm++",
        "--steps",
        "2,5",
    )
    rows = found["sweep"]["rows"]
    assert [(row["sampler"], row["steps"], row["evaluations"]) for row in rows] == [
        ("heun", 2, pytest.approx(3, abs=1)),
        ("heun", 5, pytest.approx(8, abs=2)),
        ("dpm++", 2, 2),
        ("dpm++", 5, 5),
    ]
    assert all(
        row["frechet"]["lowest"] <= row["frechet"]["mean"] <= row["frechet"]["highest"]
        and row["seconds"] > 0
        for row in rows
    )
    assert len([line for line in table if line.startswith(("| heun", "| dpm++"))]) == 4
    assert found["sweep"]["plot"] == str(run / "evaluation" / "sweep.png")
    assert Image.open(found["sweep"]["plot"]).size == (1200, 480)
    assert {row["batch_size"] for row in rows} == {20}
    only, found = measure(capsys, run, tiny_data, "--num", "20", "--seeds", "0", "--sweep", "steps")
    assert [(row["sampler"], row["steps"]) for row in found["sweep"]["rows"]] == [
        ("unipc", 5),
        ("unipc", 10),
        ("unipc", 20),
    ]  # T = 20
    assert found["sweep"]["floor"] < found["sweep"]["ceiling"]
    assert "lowest .. highest" not in " ".join(only)


def test_what_is_wrong_is_one_line(tiny_run, conditional_run, tiny_data, tmp_path, refused):
    def said(*argv):
        return refused(evaluate.main, "--ckpt", tiny_run, "--device", "cpu", *argv)

    here = ("--dataset", tiny_data, "--data-root", tiny_data.parent)
    np.savez(
        tmp_path / "gray.npz",
        train_images=np.zeros((9, 8, 8, 1), np.uint8),
        train_labels=np.zeros(9, int),
    )
    np.savez(tmp_path / "few.npz", train_images=np.zeros((39, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "flat.npz", train_images=np.zeros((40, 8, 8, 3), np.uint8))
    assert "no checkpoint at" in refused(evaluate.main, "--ckpt", tmp_path / "none")
    assert "unknown dataset 'tiny'" in refused(
        evaluate.main, "--ckpt", tiny_run / "checkpoints" / "step_00000012.ckpt", "--device", "cpu"
    )
    assert "leave out --weights raw" in said(*here, "--ema-length", 0.1, "--weights", "raw")
    assert "no averages to combine" in said(*here, "--ema-length", 0.1)
    assert "has 1 channels, and the model 3" in said("--dataset", tmp_path / "gray.npz")
    assert "more than the 20 unseen images" in said(*here, "--flow", 21)
    np.savez(
        tmp_path / "more.npz",
        train_images=np.zeros((9, 8, 8, 3), np.uint8),
        train_labels=np.full(9, 2),
    )
    more = tmp_path / "more.npz"
    assert "the label 2, and the model knows 2 classes" in refused(
        evaluate.main, "--ckpt", conditional_run, "--dataset", more
    )
    assert "more than the 20 unseen images" in said(*here, "--bound", 21)
    assert "give 2 or more" in said(*here, "--flow", 1)
    assert "give 4 or more" in said(*here, "--num", 3)
    assert "at least 4" in said(*here, "--references", 3)
    assert "4 of each are the least" in said("--dataset", tmp_path / "few.npz")
    assert "add --sampler ddim" in said(*here, "--eta", 0.5)
    assert "add --sampler ddpm" in said(*here, "--variance", "small", "--sampler", "ddim")
    assert "are for --features inception" in said(*here, "--inception-weights", tmp_path / "x.pth")
    assert "nothing to measure" in said(*here, "--bound", 0, "--num", 0)
    assert "has no labels" in said("--dataset", tmp_path / "flat.npz", "--features", "classifier")
    assert "no file at" in said(
        *here, "--features", "inception", "--inception-weights", tmp_path / "none.pth"
    )
    assert "did you mean classifier?" in said(*here, "--features", "clasifier")
    assert "needs --sweep steps" in said(*here, "--steps", "5,10")
    assert "--class-conditional" in said(*here, "--guidance", 2)
    assert "choose from 1 to 20 steps" in said(*here, "--steps", 21)
    assert "--sweep changes nothing with --doctor" in refused(
        evaluate.main, "--ckpt", tiny_run, "--doctor", "--sweep", "steps"
    )
    assert "--exact changes nothing with --sweep" in said(*here, "--exact", "--sweep", "steps")
    assert "--steps changes nothing here" in said(*here, "--num", 0, "--steps", 5)
    assert "--terms changes nothing here" in said(*here, "--bound", 0, "--terms", 5)
    assert "leave out --terms" in said(*here, "--exact", "--terms", 5)
    assert "is no run directory" in refused(evaluate.main, "--ckpt", tmp_path, "--doctor")
