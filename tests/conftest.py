"""Fixtures shared by the tests of data preparation.

`tiny_tree` is the whole zoo in six files: a content in two folders, one twice
in one folder, and classes of different size.
"""

import ctypes
import importlib
import os
import random
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from vit21k._native import NoExtensionError, extension

# The same examples every time, on a slow machine too; HYPOTHESIS_PROFILE=search looks for others.
settings.register_profile(
    "same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

WITH_EXTRAS = os.environ.get("TEST_EXTRAS") == "1"
"""Whether `make test-extras` runs: what a test needs must be there then."""


def needs_extra(module: str) -> Any:
    """Return a module that the extra `test-extras` brings; skip where it is not installed."""
    if WITH_EXTRAS:
        return importlib.import_module(module)
    reason = f"{module} is not installed; `make test-extras` runs this"
    return pytest.importorskip(module, reason=reason)


def needs_chromium() -> str:
    """Return the browser's program; skip where it is not installed."""
    found = [path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))]
    if WITH_EXTRAS and not found:
        pytest.fail("chromium is not installed: `apt-get install chromium`")
    if not found:
        pytest.skip("chromium is not installed; `make test-extras` runs this")
    return found[0]


TINY_FILES = {
    "n01440764/n01440764_1.JPEG": b"tench",
    "n01440764/n01440764_2.JPEG": b"tench again",
    "n01440764/n01440764_3.JPEG": b"tench",  # same content, same class
    "n01443537/n01443537_1.JPEG": b"goldfish",
    "n01443537/n01443537_2.JPEG": b"fish",
    "n02512053/n02512053_9.JPEG": b"fish",  # same content, other class
}

LONG_BYTES = 16

HERE = Path(__file__).parent

if find_spec("torch") is None:  # data preparation is tested without it
    collect_ignore = [
        str(path.relative_to(HERE))
        for path in HERE.rglob("test_*.py")
        if re.search("^import torch\\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def pytest_make_parametrize_id(val: object) -> str | None:
    """Call long bytes by their number: the processes of a test run must agree on all names."""
    return f"{len(val)} bytes" if isinstance(val, bytes) and len(val) > LONG_BYTES else None


@pytest.fixture(autouse=True)
def _same_random_values() -> None:
    """Seed what a test draws without a generator: it must not depend on the tests before it."""
    random.seed(0)
    for name in ("numpy", "torch"):
        if module := sys.modules.get(name):
            (module.random.seed if name == "numpy" else module.manual_seed)(0)


MakeTree = Callable[[Mapping[str, bytes]], Path]


@pytest.fixture
def make_tree(tmp_path: Path) -> MakeTree:
    """A function that lays files out below a new image root, which it returns."""

    def make(files: Mapping[str, bytes]) -> Path:
        root = tmp_path / "tree"
        root.mkdir(exist_ok=True)
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return root

    return make


@pytest.fixture
def tiny_tree(make_tree: MakeTree) -> Path:
    return make_tree(TINY_FILES)


@pytest.fixture(scope="session")
def native_extension() -> ctypes.CDLL:
    """The compiled extension; what asks for it is skipped where it was not built."""
    try:
        return extension()
    except NoExtensionError as error:
        pytest.skip(error.message)


needs_extension = pytest.mark.usefixtures("native_extension")
