"""DDPM_Diffusion.ipynb: as it is committed, and run from top to bottom with few training steps, in
a copy."""

import ast
import csv
import inspect
import re
import shutil
import textwrap

import nbformat
import pytest
from conftest import ROOT, SOURCES, copy_project
from nbclient import NotebookClient

FILE = ROOT / "DDPM_Diffusion.ipynb"
REMAKE = "its outputs are of older code: make them again with the command in CONTRIBUTING.md"
COMMITTED = nbformat.read(FILE, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def python(cell) -> str:
    """The cell's source with IPython's own lines left out."""
    return "\n".join(re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in cell.source.splitlines())


def defined(code: str) -> set[str]:
    """The names of its functions, methods and classes."""
    return {
        node.name
        for node in ast.walk(ast.parse(code))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }


def pictures(notebook) -> list[str]:
    """The kinds of pictures in the outputs, cell by cell."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [
        kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")
    ]


def animations(notebook) -> int:
    """The number of GIFs. Their kind is image/png, because nbconvert shows no image/gif."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    data = [output.get("data", {}).get("image/png", "") for output in outputs]
    return sum(text.startswith("R0lGOD") for text in data)


def printed(notebook) -> str:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "\n".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs
    )


def check_outputs(notebook) -> None:
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [
        output for cell in cells for output in cell.outputs if output.output_type == "error"
    ]
    assert not re.search(r"Warning|Traceback|Error\b|: error:", printed(notebook))
    assert not re.search(
        r"(?<![\w.:/])/(home|root|tmp|work|usr|opt|mnt|content|Users)/|[A-Z]:\\",
        notebook_text(notebook),
    )
    assert pictures(notebook).count("image/png") >= 10
    assert animations(notebook) == 1


def notebook_text(notebook) -> str:
    return printed(notebook) + "\n".join(cell.source for cell in notebook.cells)


def test_it_is_committed_as_it_ran():
    check_outputs(COMMITTED)
    assert FILE.stat().st_size < 3_000_000


def test_no_output_is_filled_by_progress():
    assert all(
        len(output.get("text", "").splitlines()) <= 40
        for cell in code_cells(COMMITTED)
        for output in cell.outputs
    )
    assert "application/vnd.jupyter.widget-view+json" not in FILE.read_text()


def test_it_repeats_no_code():
    modules = [file.read_text() for file in SOURCES]
    source = "\n".join(cell.source for cell in code_cells(COMMITTED))
    imported = re.findall(r"^import (\w+)", source, re.MULTILINE)
    imported += re.findall(r"^from (?:\w+\.)?(\w+) import", source, re.MULTILINE)
    theirs = set().union(*(defined(file.read_text()) for file in SOURCES if file.stem in imported))
    assert len(theirs) > 20
    for cell in code_cells(COMMITTED):
        assert not defined(python(cell)) & theirs
        lines = {
            line.strip()
            for line in cell.source.splitlines()
            if len(line.strip()) > 40 and "import" not in line
        }
        assert not [line for line in lines for text in modules if line in text]
        assert len(cell.source.splitlines()) <= 25


def test_the_code_that_it_shows_is_up_to_date():
    from DiffusionModel import DiffusionModel

    for function in (
        DiffusionModel.q_sample,
        DiffusionModel.get_loss,
        DiffusionModel.denoise_sample,
    ):
        assert textwrap.dedent(inspect.getsource(function)) in printed(COMMITTED), REMAKE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what `copy_project` copies, and the notebook."""
    folder = tmp_path_factory.mktemp("notebook")
    copy_project(folder)
    shutil.copy(FILE, folder)
    return folder


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(folder, monkeypatch):
    monkeypatch.setenv("DDPM_STEPS", "80")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(FILE, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    check_outputs(notebook)
    assert pictures(notebook) == pictures(COMMITTED)
    run = folder / "runs" / "notebook"
    assert (run / "denoise.gif").read_bytes().startswith(b"GIF89a")
    losses = [
        float(row["val_loss"])
        for row in csv.DictReader((run / "metrics.csv").read_text().splitlines())
        if row["val_loss"]
    ]
    assert len(losses) == 4
    assert losses[-1] < 0.3 < losses[0]  # a loss of 1: no noise is predicted
    assert re.search(r"loss before training: (0\.9[89]|1\.0[01])", printed(notebook))


def test_without_the_project_it_says_what_to_do(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="clone or upload the project"):
        exec(python(code_cells(COMMITTED)[0]), {})
