"""What is printed never turns finished work into a failure."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

IMAGE = ROOT / "images" / "input.png"


def noised(out, **options):
    command = [sys.executable, ROOT / "Inference.py", "--input-image", IMAGE, "--out", out]
    return subprocess.run([*command, "--frames", "2"], stderr=subprocess.PIPE, **options)


@pytest.mark.slow
def test_a_full_disk_under_the_output_of_a_script(tmp_path):
    with open("/dev/full", "w") as full:
        done = noised(tmp_path / "out", stdout=full)
    assert done.returncode == 0
    assert done.stderr.count(b"\n") == 1
    assert b"Inference.py: the output cannot be written (No space left on device)" in done.stderr
    assert (tmp_path / "out" / "t1000.png").exists()


def test_a_folder_that_the_encoding_cannot_print(tmp_path):
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = noised(tmp_path / "é", stdout=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\xe9: t0000.png" in done.stdout


CODE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from runtime.output import protect_output
protect_output()
if sys.argv[2] == "pipe":
    os.read(0, 1)                # until the reader is gone
for _ in range(2):
    print("line", flush=True)
    print("line", file=sys.stderr)
open("done", "w").close()
"""


@pytest.mark.parametrize("kind", ["pipe", "closed"])
def test_without_a_reader(tmp_path, kind):
    ready, go = os.pipe()
    reader, writer = os.pipe()
    close = (lambda: [os.close(number) for number in (1, 2)]) if kind == "closed" else None
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, ROOT, kind],
        stdin=ready,
        stdout=writer,
        stderr=writer,
        cwd=tmp_path,
        preexec_fn=close,
    )
    for end in (reader, writer):
        os.close(end)
    os.write(go, b"x")
    assert process.wait(60) == 0
    assert (tmp_path / "done").exists()
    os.close(go)
    os.close(ready)
