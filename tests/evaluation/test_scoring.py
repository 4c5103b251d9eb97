"""evaluate.py --samples: images made by any program, against a dataset or each other."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch_fidelity
from PIL import Image

import evaluate
from Dataset import DiffSet
from evaluation import features, scoring
from evaluation.image_sets import fit_to_dataset, load_image_set
from evaluation.plan import ScoringPlan

pytestmark = pytest.mark.usefixtures("quick_classifier")

# The Frechet distance of a set to itself is not exactly 0: there are fewer images than features,
# and the square roots of the covariances' rounded zero eigenvalues add up. For other sets it is
# over 0.01.
ROUNDING = 1e-3


@pytest.fixture
def score(capsys, tiny_data):
    """A function that runs evaluate.py --samples and returns the table and the line of JSON."""

    def run(*words):
        machine = ["--data-root", tiny_data.parent, "--device", "cpu", "--json"]
        argv = map(str, ["--samples", *words, *machine])
        assert evaluate.main(list(argv)) == 0
        *table, line = capsys.readouterr().out.splitlines()
        return table, json.loads(line)

    return run


def write_folder(folder, images):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture
def pixels(tiny_data):
    """30 images like those of `tiny_data`, none of which is in it: uint8 (30,8,8,3)."""
    random = np.random.default_rng(3)
    bright = 150 * random.integers(0, 2, (30, 1, 1, 1))
    return (random.random((30, 8, 8, 3)) * 60 + bright).astype(np.uint8)


def test_a_file_and_a_folder_with_the_same_images_have_the_same_distances(
    score, pixels, tiny_data, tmp_path
):
    np.savez(tmp_path / "file.npz", pixels)
    folder = write_folder(tmp_path / "folder", pixels)
    table, of_file = score(tmp_path / "file.npz", "--dataset", tiny_data)
    _, of_folder = score(folder, "--dataset", tiny_data)
    one, other = (found["distances"]["classifier"] for found in (of_file, of_folder))
    assert {**one, "samples": ""} == {**other, "samples": ""}
    assert (one["images"], one["sets"], one["to_train"]["images"]) == (30, 1, 60)
    for metric in ("frechet", "kernel"):
        value = one["to_train"][metric]
        assert value["mean"] < value["ceiling"] / 10
    assert "bits_per_dim" not in of_file
    assert "checkpoint" not in of_file
    written = json.loads((tmp_path / "file-evaluation" / "metrics.json").read_text())
    assert written == of_file
    assert f"30 images of {tmp_path / 'file.npz'} against tiny" in table
    assert any(line.startswith("memorization, 30 samples against 60 training") for line in table)
    picture = of_folder["memorization"]["classifier"]["picture"]
    assert picture == str(tmp_path / "folder-evaluation" / "nearest-classifier.png")
    assert Image.open(picture).size == (3 * (9 * 10 + 2 * 6), 3 * 8 * 10)
    assert len(list(folder.iterdir())) == 30


def test_a_second_run_ignores_the_earlier_picture_and_reuses_the_features(
    score, pixels, tiny_data, tmp_path, monkeypatch
):
    write_folder(tmp_path / "all" / "folder", pixels)
    _, first = score(tmp_path / "all" / "folder", "--dataset", tiny_data)
    assert (tmp_path / "all" / "folder-evaluation" / "nearest-classifier.png").is_file()
    monkeypatch.setattr(features, "extract_features", lambda *_: pytest.fail("extracted again"))
    _, again = score(tmp_path / "all" / "folder", "--dataset", tiny_data)
    assert again == first
    _, above = score(tmp_path / "all", "--dataset", tiny_data)  # which has the picture in it
    assert above["distances"]["classifier"]["images"] == 30
    assert above["samples_digest"] == first["samples_digest"]


def test_few_images_are_warned_of_and_json_is_printed_on_request_alone(
    pixels, tiny_data, tmp_path, capsys
):
    np.savez(tmp_path / "few.npz", pixels)
    words = ["--samples", tmp_path / "few.npz", "--dataset", tiny_data, "--device", "cpu"]
    argv = [*map(str, words), "--data-root", str(tiny_data.parent)]
    assert evaluate.main(argv) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"  written to {tmp_path / 'few-evaluation' / 'metrics.json'}"
    line = next(line for line in err.splitlines() if line.startswith("warning: "))
    assert "warning: 30 images are few, so their Frechet distance in features of class" in line
    assert 'in the column "real images"' in line


@pytest.mark.parametrize(
    ("count", "size", "few"), [(999, 100, 1), (1000, 100, 0), (4095, 2048, 1), (4096, 2048, 0)]
)
def test_how_many_images_are_few_depends_on_the_features(count, size, few):
    extractor = SimpleNamespace(name="inception", network=SimpleNamespace(size=size))
    of_dataset = SimpleNamespace(samples=range(count), extractors=[extractor], reference=None)
    assert scoring.warning_of_few(of_dataset).startswith(f"warning: {count} images" * few)
    assert bool(scoring.warning_of_few(of_dataset)) == bool(few)
    of_reference = SimpleNamespace(**{**vars(of_dataset), "reference": range(4)})
    assert (f"another set of {count} images" in scoring.warning_of_few(of_reference)) == bool(few)


def test_training_images_have_distance_0_and_are_copies(score, tiny_data, tmp_path):
    train_set = DiffSet(True, str(tiny_data), image_size=8)
    labels = train_set.labels.numpy()
    images = train_set.images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "train.npz", arr_0=images, arr_1=labels)
    _, found = score(tmp_path / "train.npz", "--dataset", tiny_data)
    one = found["distances"]["classifier"]
    assert one["to_train"]["frechet"]["mean"] == pytest.approx(0, abs=ROUNDING)
    assert (one["to_train"]["precision"]["mean"], one["to_train"]["recall"]["mean"]) == (1, 1)
    assert one["as_asked"]["mean"] == 1
    assert one["shares"] == pytest.approx(one["real_shares"])
    memorization = found["memorization"]["classifier"]
    assert (memorization["pixels"]["copies"], memorization["features"]["copies"]) == (1, 1)
    # label 2 is no class of the dataset
    np.savez(tmp_path / "train.npz", arr_0=images, arr_1=labels + 1)
    _, found = score(tmp_path / "train.npz", "--dataset", tiny_data)
    assert "as_asked" not in found["distances"]["classifier"]


def test_a_set_against_itself_and_against_another(score, pixels, tiny_data, tmp_path):
    folder = write_folder(tmp_path / "a", pixels)
    np.savez(tmp_path / "b.npz", (pixels // 2))
    _, same = score(folder, folder, "--dataset", tiny_data)
    one = same["distances"]["classifier"]["to_reference"]
    assert one["frechet"]["mean"] == pytest.approx(0, abs=ROUNDING)
    assert (one["precision"]["mean"], one["recall"]["mean"]) == (1, 1)
    neighbours = same["neighbours"]["classifier"]
    for kind in ("pixels", "features"):
        assert (neighbours[kind]["equal"], neighbours[kind]["ratio"]) == (
            1,
            pytest.approx(0, abs=1e-3),
        )
    table, other = score(folder, "--samples", tmp_path / "b.npz", "--dataset", tiny_data)
    one = other["distances"]["classifier"]["to_reference"]
    assert one["frechet"]["mean"] > 0.01
    assert "floor" not in one["frechet"]
    assert other["neighbours"]["classifier"]["pixels"]["equal"] == 0
    assert other["neighbours"]["classifier"]["pixels"]["ratio"] > 1.5
    ceiling = f"{one['frechet']['ceiling']:.4f}"
    (line,) = [line for line in table if "Frechet distance to 30 reference images" in line]
    (heading,) = [line for line in table if line.endswith("noise")]
    assert line.endswith(ceiling)
    assert len(line) == len(heading)
    assert any(line.startswith("nearest neighbours, 30 samples among 30") for line in table)
    written = json.loads((tmp_path / "a-evaluation" / "metrics.json").read_text())
    assert written.pop("earlier") == [same]
    assert written == other


def test_samples_of_a_model_come_with_its_bits_per_dim(
    score, fresh_run, sampled, tiny_data, tmp_path
):
    words = ("--ckpt", fresh_run, "--bound", 4, "--out", tmp_path / "scores")
    table, found = score(sampled / "samples.npz", *words)
    assert found["bits_per_dim"]["bound"]["images"] == 4
    assert found["distances"]["classifier"]["images"] == 5
    assert found["dataset"] == "tiny"
    assert found["checkpoint_sha256"]
    assert any(line.startswith("bits/dim, variational bound") for line in table)
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text()) == found
    assert not (fresh_run / "metrics.json").exists()


def fitted(samples, dataset, root):
    """The samples and the training images that they are compared with."""
    plan = ScoringPlan((samples,), str(dataset), str(root), (), None, None, 100)
    images = load_image_set(samples)
    train_set = scoring.load_dataset(plan, str(dataset), images).train_set
    return fit_to_dataset(images, train_set), train_set


def test_28x28_is_padded_as_the_dataset_is(tmp_path):
    """The gray images are stored in three channels."""
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 1), np.uint8)
    np.savez(tmp_path / "digits.npz", train_images=images, train_labels=np.arange(40) % 2)
    padded = np.pad(images[:12], ((0, 0), (2, 2), (2, 2), (0, 0)))
    for samples in (images[:12], padded):
        np.savez(tmp_path / "samples.npz", samples.repeat(3, -1))
        found, train_set = fitted(tmp_path / "samples.npz", tmp_path / "digits.npz", tmp_path)
        assert train_set.images.shape[1:] == (1, 32, 32)
        assert sorted(found.images.flatten(1).tolist()) == sorted(padded.reshape(12, -1).tolist())


def test_a_folder_of_real_images_is_resized_to_the_samples(pixels, tmp_path):
    large = pixels.repeat(3, 1).repeat(3, 2)
    write_folder(tmp_path / "photos", np.concatenate([large, 255 - large]))
    np.savez(tmp_path / "small.npz", pixels)
    found, train_set = fitted(tmp_path / "small.npz", tmp_path / "photos", tmp_path)
    assert train_set.images.shape[1:] == found.images.shape[1:] == (3, 8, 8)


@pytest.mark.slow
def test_fid_is_that_of_torch_fidelity_for_the_same_folders(
    score, shapes, inception_file, tmp_path
):
    """torch-fidelity reads the folders itself and uses the same (untrained) weights."""
    images = shapes.test_set.images.permute(0, 2, 3, 1).numpy()
    one, other = (
        write_folder(tmp_path / name, part)
        for name, part in (("one", images[:24]), ("other", images[24:44]))
    )
    expected = torch_fidelity.calculate_metrics(
        input1=str(one),
        input2=str(other),
        cuda=False,
        fid=True,
        feature_extractor_weights_path=str(inception_file),
        batch_size=8,
        num_workers=0,
        verbose=False,
        cache=False,
    )
    words = ("--features", "inception", "--inception-weights", inception_file)
    table, found = score(one, other, *words)
    inception = found["distances"]["inception"]
    to_reference = inception["to_reference"]
    assert to_reference["frechet"]["mean"] == pytest.approx(
        expected["frechet_inception_distance"], rel=1e-4
    )
    assert "inception_score" in inception
    assert not inception["published_weights"]
    assert not any("FID" in line for line in table)


# ---- refusals ------------------------------------------------------------------------------------


def test_images_that_do_not_fit_give_a_one_line_error(refused, pixels, tiny_data, tmp_path):
    def said(*argv):
        return refused(evaluate.main, "--device", "cpu", "--samples", *argv)

    here = ("--dataset", tiny_data, "--data-root", tiny_data.parent)
    large = tmp_path / "large.npz"
    np.savez(large, pixels.repeat(2, 1).repeat(2, 2))
    assert "has images of 16x16, and tiny of 8x8: write the samples in 8x8" in said(large, *here)
    gray = tmp_path / "gray.npz"
    np.savez(gray, pixels[..., :1])
    assert "has gray images, and tiny has RGB ones: write them as RGB" in said(gray, *here)
    wide = tmp_path / "wide.npz"
    np.savez(wide, pixels.repeat(2, 2))
    assert "has images of 8x16, and tiny of 8x8" in said(wide, *here)
    colour = tmp_path / "colour.npz"
    np.savez(colour, pixels)
    assert "write both in one size" in said(colour, large)
    assert "colour.npz has RGB images, and" in said(colour, gray)
    few = tmp_path / "few.npz"
    np.savez(few, pixels[:3])
    assert "has 3 images: at least 4 are needed" in said(few, *here)
    assert "no samples at" in said(tmp_path / "none", *here)
    assert "unknown dataset 'cifra10', did you mean cifar10?" in said(
        colour, "--dataset", "cifra10"
    )
    folder = write_folder(tmp_path / "folder", pixels)
    assert "would be inside the folder of samples" in said(
        folder, *here, "--out", folder / "results"
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text('{"checkpoint_sha256": "x"}')
    assert "belongs to a model" in said(folder, *here, "--out", tmp_path / "run")
    (tmp_path / "file").write_text("")
    assert "cannot write to" in said(folder, *here, "--out", tmp_path / "file" / "x")
    assert not list(tmp_path.glob("*-evaluation"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "give a model with --ckpt, or images with --samples"),
        ("--samples a", "give --dataset, or a second --samples"),
        ("--samples a b c", "one or two folders or .npz files, not 3"),
        ("--samples a --samples b --ckpt runs/c", "leave out --ckpt"),
        ("--samples a b --references 9", "leave out --references"),
        ("--samples a b --features classifier", "needs a --dataset"),
        ("--samples a b --features inception --dataset mnist", "add --features classifier"),
        ("--samples a --dataset mnist --num 9", "--num changes nothing with --samples"),
        ("--samples a --dataset mnist --bound 9", "--bound changes nothing with --samples"),
        ("--samples a --ckpt runs/b --sampler ddim", "--sampler changes nothing with --samples"),
        ("--samples a --ckpt runs/b --bound 0 --exact", "--exact changes nothing with --samples"),
        ("--samples a --ckpt runs/b --doctor", "--samples changes nothing with --doctor"),
        ("--samples a --ckpt runs/b --sweep steps", "--samples changes nothing with --sweep"),
        ("--samples a --dataset mnist --doctor", "give a model with --ckpt"),
        ("--ckpt runs/b --out c", "--out changes nothing here"),
        ("--samples", "expected at least one argument"),
    ],
)
def test_flags_that_do_not_go_together(refused, words, said):
    assert said in refused(evaluate.main, *words.split())
