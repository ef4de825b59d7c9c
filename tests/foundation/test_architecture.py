"""How the package is built: import contracts, and functions that fit on a screen."""

import ast
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest

import vit21k

PACKAGE = Path(__file__).parents[2] / "vit21k"
MODULES = sorted(PACKAGE.rglob("*.py"))
FUNCTION_LINES = 50

IMPORT_WITHOUT_TORCH = """
import importlib, pkgutil, sys
for name in ("torch", "torchvision", "safetensors"):
    sys.modules[name] = None  # importing it raises
import vit21k.demo_tree, vit21k.export.datasets, vit21k.labels
import vit21k.manifest, vit21k.prep, vit21k.recipe, vit21k.sources
for package in (vit21k.labels, vit21k.manifest, vit21k.prep, vit21k.recipe, vit21k.sources):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
"""


def test_the_import_contracts_are_kept() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    if not program.exists():
        pytest.skip("import-linter is not installed")

    result = subprocess.run(
        [program, "--no-cache"], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stdout


def test_data_preparation_imports_where_there_is_no_torch() -> None:
    command = [sys.executable, "-c", IMPORT_WITHOUT_TORCH]

    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr


def test_the_version_is_looked_up_when_it_is_asked_for() -> None:
    assert "__version__" not in vars(vit21k)
    assert vit21k.__version__ == version("vit21k")


def test_no_two_public_classes_or_functions_have_one_name() -> None:
    names = [
        node.name
        for path in MODULES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    ]
    repeated = {name for name, number in Counter(names).items() if number > 1}

    assert repeated == {"read_manifest"}  # that of the package takes the name of a kind


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_says_what_it_is_and_its_functions_are_short(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    too_long = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.body[0].lineno >= FUNCTION_LINES
    ]

    assert ast.get_docstring(tree) or path.name == "__main__.py"
    assert not too_long
