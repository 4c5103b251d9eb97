"""Images for editing, in the size of the model."""

import pytest
from PIL import Image

from sampling.input_images import describe_fit


@pytest.mark.parametrize(
    ("picture", "size", "said"),
    [
        ((32, 32), 32, ""),
        ((48, 32), (32, 48), ""),
        ((64, 64), 32, "64x64, resized to 32x32"),
        ((64, 48), 32, "64x48, resized and cropped to 32x32"),
        ((32, 48), (32, 48), "32x48, resized and cropped to 48x32"),
        ((28, 28), 32, "28x28, padded with black to 32x32"),
        ((28, 28), 16, "28x28, resized to 16x16"),
    ],
)
def test_how_an_image_was_fitted_is_said(tmp_path, picture, size, said):
    file = tmp_path / "a.png"
    Image.new("RGB", picture).save(file)
    assert "padded" not in describe_fit(file, size, pad=False)
    assert describe_fit(file, size) == (f"{file}: {said} (width x height)" if said else "")
