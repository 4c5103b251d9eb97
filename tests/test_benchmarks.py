"""speed.py, step.py, mapped.py and recipes.py run and print their tables; what they measure is in
benchmarks/RESULTS.md, never asserted."""

import subprocess
import sys

import pytest
from conftest import ROOT


def printed(script: str, *flags: str) -> str:
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def rows(table: str) -> dict[str, list[str]]:
    found = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("| ")
    ]
    return {name: cells for name, *cells in found}


@pytest.mark.slow
def test_speed_prints_a_table():
    out = printed(
        "speed.py",
        "--network",
        "laptop",
        "--batch",
        "4",
        "--rounds",
        "1",
        "--seconds",
        "0.01",
        "--contenders",
        "ours,plain,convolutions,matmul",
        "--neighbours",
        "1",
    )
    table = rows(out)
    assert "laptop**, batch 4" in out
    assert (
        table["this project"][:2]
        == table["its network in a plain float32 loop"][:2]
        == ["1.12M", "0.36"]
    )
    assert all(float(cells[2]) > 0 and float(cells[4]) > 0 for name, cells in table.items() if name)


@pytest.mark.slow
def test_where_the_time_of_a_step_goes():
    table = rows(printed("step.py", "--steps", "4", "--flags=--preset laptop --batch-size 4"))
    shares = [float(cells[1].rstrip("%")) for cells in table.values() if cells[1].endswith("%")]
    assert {"network, forward", "network, backward", "optimizer", "the rest"} <= table.keys()
    assert abs(sum(shares) - 100) < 1
    assert min(shares) >= 0


@pytest.mark.slow
def test_mapped_images_are_compared_with_images_in_memory(tiny_data):
    words = f"--dataset {tiny_data} --image-size 16 --steps 1 --rounds 2".split()
    out = printed("mapped.py", *words, "--data-root", str(tiny_data.parent))
    table = rows(out)
    assert set(table) >= {"64", "mapped", "in memory"}
    assert (
        "speed of mapped relative to in-memory images, 2 pairs of 1 steps:\nby time: median" in out
    )


@pytest.mark.slow
def test_a_recipe_is_trained_and_evaluated(tiny_data):
    words = "--recipe unguided --steps 2 --seeds 0 --images 200".split()
    data = ["--dataset", str(tiny_data), "--data-root", str(tiny_data.parent)]
    mean, extremes, steps = rows(printed("recipes.py", *words, *data))["unguided"]
    assert extremes == f"{mean} to {mean}"
    assert float(mean) > 0
    assert steps == "2"
