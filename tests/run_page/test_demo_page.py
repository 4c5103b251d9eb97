"""The page of `bash run.sh demo`."""

import re

import numpy as np
import pytest

from run_page import demo_page


def write_samples(folder, labels):
    (folder / "shapes").mkdir(exist_ok=True)
    images = np.zeros((len(labels), 8, 8, 3), np.uint8)
    np.savez(folder / "shapes" / "samples.npz", arr_0=images, arr_1=labels)


@pytest.mark.parametrize(
    ("count", "columns"),
    [
        (20, "circle triangle square pentagon star circle triangle square pentagon star"),
        (3, "circle triangle square"),
    ],
)
def test_columns_have_the_names_of_their_classes(tmp_path, count, columns):
    write_samples(tmp_path, [i % 5 for i in range(count)])
    (line,) = demo_page.write_demo_page(tmp_path, {"shapes": "7"})
    assert line == f"shapes: {count} images in 7 s, columns {', '.join(columns.split())}"
    page = (tmp_path / "index.html").read_text()
    assert re.findall(r"<span>(\w+)</span>", page) == columns.split()
    assert 'src="shapes.gif"' in page
    assert f"{count} images in 7 s" in page


def test_columns_of_several_classes_have_no_names(tmp_path):
    write_samples(tmp_path, [i % 3 for i in range(20)])
    (line,) = demo_page.write_demo_page(tmp_path, {"shapes": "7"})
    assert line == "shapes: 20 images in 7 s"
    assert "<span>" not in (tmp_path / "index.html").read_text()
