"""Suggestions for misspelled names."""

import pytest

from runtime import suggestions


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Fashion-MNIST", "fashionmnist"),
        ("CIFAR 10", "cifar10"),
        ("shape", "shapes"),
        ("zebra", ""),
        ("--no-such-flag", ""),
    ],
)
def test_nearest(name, meant):
    known = ["mnist", "fashionmnist", "cifar10", "shapes", "--no-flip"]
    assert suggestions.nearest(name, known) == meant


def test_an_unknown_name_gives_a_one_line_message_with_all_known_ones():
    known = ["linear", "cosine"]
    message = suggestions.unknown("schedule", "cosin", known, " or a file")
    expected = "unknown schedule 'cosin', did you mean cosine? Give linear, cosine or a file"
    assert message == expected
    assert suggestions.unknown("schedule", "zebra", known).startswith("unknown schedule 'zebra'. ")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("minst", "unknown dataset 'minst', did you mean mnist? Give mnist, shapes or a folder"),
        ("minst/", "no folder minst/: give mnist, shapes or a folder"),
        ("zebra", "no folder zebra: give mnist, shapes or a folder"),
        ("mnist.nzp", "no file mnist.nzp: give mnist, shapes or a folder"),
        (__file__, f"{__file__} is neither a folder nor an .npz file: give mnist, "),
    ],
)
def test_a_path_that_does_not_exist_is_called_missing(name, said):
    known = ["mnist", "shapes"]
    assert suggestions.unknown_or_missing("dataset", name, known, " or a folder").startswith(said)
