"""--version, and the files that contain the version."""

import re
from importlib import metadata

import pytest
from conftest import ROOT

import convert
import evaluate
import Inference
import make_gif
import report
import train
from runtime.version import VERSION


@pytest.mark.parametrize("script", [train, Inference, make_gif, evaluate, convert, report])
def test_every_script_prints_the_versions(script, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--version"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"DDPM {VERSION}, Python 3.")
    assert f"torch {metadata.version('torch')}, " in printed
    assert printed.count("\n") == 1


def test_the_version_is_the_same_everywhere():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == VERSION
    assert f"version: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
