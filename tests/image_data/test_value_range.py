"""Images of more than 8 bits: one range for a whole dataset, or a refusal."""

import numpy as np
import pytest
from conftest import TINY
from PIL import Image

import evaluate
import Inference
import train
from Dataset import DiffSet
from evaluation import sample_checks
from evaluation.doctor import examine
from evaluation.finding import Finding
from image_data.image_files import decode_folder, open_image
from image_data.npz_files import read_npz
from image_data.value_range import ValueRange, choose_range, find_range

SOUND = Finding("colours", True, "")


def images(low, high, dtype):
    values = np.linspace(low, high, 64).reshape(8, 8).astype(dtype)
    return [Image.fromarray(values)]


@pytest.mark.parametrize(
    ("low", "high", "dtype", "expected"),
    [
        (0, 1, np.float32, ValueRange(0, 1, "fractions")),
        (0.2, 0.4, np.float32, ValueRange(0, 1, "fractions")),
        (-1, 1, np.float32, ValueRange(-1, 1, "fractions")),
        (0, 200, np.uint16, ValueRange(0, 255, "8 bits")),
        (0, 1000, np.uint16, ValueRange(0, 1023, "10 bits")),
        (5, 4095, np.uint16, ValueRange(0, 4095, "12 bits")),
        (0, 4096, np.uint16, ValueRange(0, 16383, "14 bits")),
        (0, 65535, np.uint16, ValueRange(0, 65535, "16 bits")),
        (0, 30000, np.int32, ValueRange(0, 65535, "16 bits")),
    ],
)
def test_the_smallest_usual_range_is_taken(low, high, dtype, expected):
    assert choose_range(images(low, high, dtype)) == expected


@pytest.mark.parametrize(
    ("low", "high", "dtype", "said"),
    [
        (-5, 100, np.int32, "give --value-range=-5,100 "),
        (0, 100_000, np.int32, "from 0 to 100000 fit no standard range"),
        (0, 255, np.float32, "fit no standard range"),
        (0, float("nan"), np.float32, "not finite"),
    ],
)
def test_values_of_no_usual_range_are_refused(low, high, dtype, said):
    with pytest.raises(ValueError, match=said):
        choose_range(images(low, high, dtype))


def test_images_of_8_bits_have_no_range_to_find(tmp_path):
    Image.new("RGB", (8, 8), (3, 3, 3)).save(tmp_path / "dark.png")
    Image.new("L", (8, 8), 3).save(tmp_path / "gray.png")
    assert find_range([tmp_path / "dark.png", tmp_path / "gray.png"]) is None
    assert np.asarray(open_image(tmp_path / "gray.png")).max() == 3


@pytest.fixture
def folder(tmp_path):
    """40 images of 12 bits in files of 16; the i-th is i / 39 as bright as the last."""
    (tmp_path / "cells").mkdir()
    for i in range(40):
        values = np.full((8, 8), 4095 * i // 39, np.uint16)
        Image.fromarray(values).save(tmp_path / "cells" / f"{i:02d}.png")
    return tmp_path / "cells"


def test_a_dark_image_stays_darker_than_another(folder, tmp_path, capsys):
    found = read_npz(decode_folder(folder, tmp_path / "data", 8))["train_images"]
    assert found[:, 0, 0, 0].tolist() == [round(4095 * i // 39 / 4095 * 255) for i in range(40)]
    assert "12 bits, 0 to 4095" in capsys.readouterr().err


def test_the_range_can_be_given(folder, tmp_path):
    default = DiffSet(True, str(folder), str(tmp_path / "data"), 8)
    given = DiffSet(True, str(folder), str(tmp_path / "data"), 8, (0, 8190))
    assert int(given.images.max()) == round(int(default.images.max()) / 2)
    words = ["--dataset", folder, "--data-root", tmp_path / "data", "--run-dir", tmp_path / "run"]
    flags = ["--value-range", "0,8190", "--prepare-data"]
    assert train.main([*map(str, words), *TINY, *flags]) == 0
    assert len([*(tmp_path / "data").iterdir()]) == 2  # a file for each range


def test_evaluation_reads_the_images_with_the_range_of_the_run(
    folder, tmp_path, capsys, monkeypatch
):
    run, data = tmp_path / "run", ["--data-root", str(tmp_path / "data")]
    words = ["--dataset", str(folder), "--run-dir", str(run), *data, *TINY, "--max-steps", "2"]
    assert train.main([*words, "--value-range", "0,8190"]) == 0
    flags = "--num 0 --bound 2 --terms 1 --device cpu".split()
    assert evaluate.main(["--ckpt", str(run), *data, *flags]) == 0
    assert "these are not the images" not in "".join(capsys.readouterr())
    assert Inference.main(["--ckpt", str(run), "--num", "4", "--out", str(run / "images")]) == 0
    seen = []
    monkeypatch.setattr(
        sample_checks, "check_colours", lambda samples, real: seen.append(real) or SOUND
    )
    examine(run, root=data[1])
    assert seen[0].max() <= 128


def test_a_folder_without_a_usual_range_gives_a_one_line_error(refused, folder, tmp_path):
    Image.fromarray(np.full((8, 8), -7, np.int32)).save(folder / "negative.tiff")
    words = ["--dataset", folder, "--data-root", tmp_path / "data", *TINY, "--max-steps", "1"]
    line = refused(train.main, *words)
    assert f"{folder}: pixel values from -7 to 4095 fit no standard range" in line
    assert "expected two numbers" in refused(train.main, *words, "--value-range", "9,1")


def test_a_given_range_does_not_hide_what_is_not_a_number(tmp_path):
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    with pytest.raises(ValueError, match=r"nan\.tiff .*not finite numbers"):
        open_image(tmp_path / "nan.tiff", ValueRange.given((0, 1)))
