"""Build the wheel, install it without torch into an empty environment, and prepare data with it.

Building it without a C compiler leaves the extension out.

python tools/check_wheel.py    exit 1 if a command does not do what it should
"""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent

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

ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name != "PYTHONPATH" and not name.startswith("VIT21K_")
}

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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if has_extension(build_wheel(folder / "without", compiler="false")):
            print("a wheel that was built without a C compiler has an extension")
            return 1
        wheel = build_wheel(folder / "with", compiler=None)
        python = install(wheel, folder)
        failures = [
            *failed(python, name, ["-c", CHECK_INSTALLED], 0),
            *failed(python, name, ["-c", MAKE_TREE], 0),
        ]
        for command, exit_code in COMMANDS:
            failures += failed(python, name, ["-m", "vit21k", *command.split()], exit_code)
        failures += failed(python, name, ["-c", CHECK_NAMES], 0)
        what = "with" if has_extension(wheel) else "without"
    print("\n".join(failures) or f"wheel: data preparation works without torch, {what} extension")
    return int(bool(failures))


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
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    if result.returncode == exit_code and "Traceback" not in result.stderr:
        return []
    output = result.stdout + result.stderr
    return [f"{arguments} ended with {result.returncode}, not {exit_code}:\n{output}"]


if __name__ == "__main__":
    sys.exit(main())
