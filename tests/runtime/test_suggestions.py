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


def test_an_unknown_name_is_one_line_with_all_known_ones():
    known = ["linear", "cosine"]
    message = suggestions.unknown("schedule", "cosin", known, " or a file")
    expected = "unknown schedule 'cosin', did you mean cosine? Give linear, cosine or a file"
    assert message == expected
    assert suggestions.unknown("schedule", "zebra", known).startswith("unknown schedule 'zebra'. ")
