"""Build the wheel, install it without torch into an empty environment, and prepare data with it.

Building it without a C compiler leaves the extension out. Commands run without a home directory.

python tools/check/check_wheel.py                exit 1 if a command does not do what it should
python tools/check/check_wheel.py --installed    of the vit21k that is installed, with the extension
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]

MAKE_TREE = """
from pathlib import Path
from vit21k.demo_tree import make_demo_tree
make_demo_tree(Path("tree"), images_per_class=12)
"""
CHECK_INSTALLED = """
from importlib.util import find_spec
assert find_spec("torch") is None, "torch is installed"
assert "site-packages" in find_spec("vit21k").origin, "vit21k is not the installed one"
"""
CHECK_NAMES = """
import vit21k
names = vit21k.read_manifest("classes")["name"].to_pylist()
assert "doughnut, donut, sinker" in names, names
"""

CHECK_EXTENSION = """
from vit21k._native import extension
extension()
"""

ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name != "PYTHONPATH" and not name.startswith("VIT21K_")
}

HOMELESS = ENVIRONMENT | {"HOME": "/proc/nobody"}  # it is not there, and cannot be made

COMMANDS: tuple[tuple[str, int], ...] = (
    ("--help", 0),
    ("doctor", 0),
    ("hash tree", 3),  # one file is empty
    ("relabel", 0),
    ("make-val --per-class 2", 0),
    ("classes identify data_manifests", 0),
    ("labels conflicts", 0),
    ("export-dataset --to hf", 0),
    ("train --recipe tiny", 1),
)
"""Commands and the exit codes that they should end with."""


def main() -> int:
    """Build, install, run; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--installed", action="store_true", help="check what is installed")
    is_installed = parser.parse_args().installed
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if is_installed:
            python, what = Path(sys.executable), "with"
        else:
            if has_extension(build_wheel(folder / "without", compiler="false")):
                print("a wheel that was built without a C compiler has an extension")
                return 1
            wheel = build_wheel(folder / "with", compiler=None)
            python, what = install(wheel, folder), "with" if has_extension(wheel) else "without"
        failures = failures_of(python, name, needs_extension=is_installed)
    print("\n".join(failures) or f"wheel: data preparation works without torch, {what} extension")
    return int(bool(failures))


def failures_of(python: Path, folder: str, *, needs_extension: bool) -> list[str]:
    """Run all commands in *folder*; return what was wrong."""
    failures = []
    if needs_extension:
        failures += failed(python, folder, ["-c", CHECK_EXTENSION], 0)
    for program in (CHECK_INSTALLED, MAKE_TREE):
        failures += failed(python, folder, ["-c", program], 0)
    for command, exit_code in COMMANDS:
        failures += failed(python, folder, ["-m", "vit21k", *command.split()], exit_code)
    return failures + failed(python, folder, ["-c", CHECK_NAMES], 0)


def has_extension(wheel: Path) -> bool:
    """Return whether the wheel holds the compiled extension."""
    with zipfile.ZipFile(wheel) as archive:
        return any(name.endswith(".so") for name in archive.namelist())


def build_wheel(folder: Path, *, compiler: str | None) -> Path:
    """Build the wheel in *folder*, from a copy without what earlier builds left in the checkout."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(CHECKOUT / "vit21k", folder / "source" / "vit21k", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, folder / "source")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, folder / "source"],
        check=True,
        env=ENVIRONMENT | ({"CC": compiler} if compiler else {}),
    )
    (wheel,) = folder.glob("vit21k-*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """Install *wheel* with the core dependencies; return the new interpreter."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", wheel], check=True, env=ENVIRONMENT)
    return python


def failed(python: Path, folder: str, arguments: Sequence[str], exit_code: int) -> list[str]:
    """Run *arguments*; return what was wrong: an exit code, or a traceback where none is due."""
    command = [str(python), *arguments]
    result = subprocess.run(
        command, cwd=folder, env=HOMELESS, capture_output=True, text=True, check=False
    )
    if result.returncode == exit_code and "Traceback" not in result.stderr:
        return []
    output = result.stdout + result.stderr
    return [f"{arguments} ended with {result.returncode}, not {exit_code}:\n{output}"]


if __name__ == "__main__":
    sys.exit(main())
