"""Reading .npz files: what is refused, and how the error names the cause."""

import numpy as np
import pytest

from image_data.npz_files import NpzError, is_image_array, read_npz, write_npz


def test_arrays_are_read_by_name(tmp_path):
    write_npz(tmp_path / "new" / "a.npz", x=[1, 2], y=np.zeros((2, 2)), z=3)
    assert set(read_npz(tmp_path / "new" / "a.npz")) == {"x", "y", "z"}
    arrays = read_npz(tmp_path / "new" / "a.npz", ("x",), optional=("z", "missing"))
    assert {name: array.tolist() for name, array in arrays.items()} == {"x": [1, 2], "z": 3}


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "missing.npz")
    write_npz(tmp_path / "good.npz", x=np.arange(1000))
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "pickle.npz", x=np.array([{}], dtype=object))
    damaged = {
        "cut.npz": "BadZipFile",
        "text.npz": "ValueError",
        "array.npy": "TypeError",
        "pickle.npz": "ValueError",
    }
    for name, kind in damaged.items():
        with pytest.raises(NpzError) as error:
            read_npz(tmp_path / name)
        assert error.value.kind == kind
        assert "\n" not in str(error.value)
    with pytest.raises(NpzError) as error:
        read_npz(tmp_path / "good.npz", ("y",))
    assert error.value.kind == "KeyError"


@pytest.mark.parametrize(
    ("shape", "dtype", "ndim", "expected"),
    [
        ((2, 4, 4, 3), np.uint8, 4, True),
        ((2, 4, 4, 1), np.uint8, 4, True),
        ((5, 2, 4, 4, 1), np.uint8, 5, True),
        ((2, 4, 4, 3), np.float32, 4, False),
        ((2, 4, 4, 2), np.uint8, 4, False),
        ((0, 4, 4, 3), np.uint8, 4, False),
        ((2, 0, 4, 3), np.uint8, 4, False),
        ((4, 4, 3), np.uint8, 4, False),
        ((), np.uint8, 4, False),
    ],
)
def test_image_arrays_are_recognized(shape, dtype, ndim, expected):
    assert is_image_array(np.zeros(shape, dtype), ndim) == expected
