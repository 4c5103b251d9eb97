"""Downloads: the error without a network, and torchvision's data in the .npz layout."""

import types
import urllib.request

import numpy as np
import pytest
import torch

from image_data import downloads
from image_data.dataset_files import read_split
from image_data.downloads import DOWNLOADS, download


@pytest.mark.parametrize("key", DOWNLOADS)
def test_a_download_is_written_in_the_layout_that_is_read(tmp_path, monkeypatch, key):
    """MNIST comes as a tensor (N,H,W), CIFAR-10 as an array (N,H,W,C) with a list of labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    calls = []

    class Fake:
        def __init__(self, root, train, download):
            calls.append((root, train, download))
            count = 12 if train else 5
            self.data = pixels[:count] if key == "cifar10" else torch.tensor(pixels[:count, ..., 0])
            self.targets = list(range(count)) if key == "cifar10" else torch.arange(count) % 10

        def __len__(self):
            return len(self.data)

    name = DOWNLOADS[key].torchvision_name
    monkeypatch.setattr(downloads, "datasets", types.SimpleNamespace(**{name: Fake}))
    file = download(key, tmp_path)
    assert calls == [(tmp_path, True, True), (tmp_path, False, True)]
    expected = pixels if key == "cifar10" else pixels[..., :1]
    for train, count in ((True, 12), (False, 5)):
        split = read_split(file, train, tuple("abcdefghijkl"))
        assert np.array_equal(split.images, expected[:count])
        assert split.labels.tolist() == [i if key == "cifar10" else i % 10 for i in range(count)]
    assert download(key, tmp_path) == file
    assert len(calls) == 2  # the file is there: nothing is downloaded


def test_without_a_network_one_line_names_the_file_to_provide(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise urllib.request.URLError("unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    for name in ("mnist", "cifar10"):
        with pytest.raises(OSError, match=rf"create .*{name}\.npz by hand") as error:
            download(name, tmp_path)
        assert "\n" not in str(error.value)
        assert not list(tmp_path.rglob("*.npz"))
