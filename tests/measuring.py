"""Run evaluate.py and read its results."""

import json

import evaluate


def measure(capsys, run, data, *more):
    """Run evaluate.py; return the lines of the table and the line of JSON.

    metrics.json must have the same numbers.
    """
    words = ["--ckpt", str(run), "--dataset", str(data), "--data-root", str(data.parent)]
    assert evaluate.main([*words, "--device", "cpu", "--precision", "32", "--json", *more]) == 0
    *table, said, line = capsys.readouterr().out.splitlines()
    assert said == f"  written to {run / 'metrics.json'}"
    found, written = json.loads(line), json.loads((run / "metrics.json").read_text())
    # The T + 1 terms are only in the file.
    terms = written.get("bits_per_dim", {}).get("bound", {}).pop("terms", None)
    for name, value in found.items():
        assert written[name] == value or value.items() <= written[name].items()
    return table, found | {"terms": terms}


def bits(capsys, run, data, *more):
    """Measure only bits/dim, of 20 images."""
    return measure(capsys, run, data, "--num", "0", "--bound", "20", *more)
