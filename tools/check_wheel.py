"""Build the wheel, install it without torch into an empty environment, and prepare data with it.

python tools/check_wheel.py    exit 1 if a command does not do what it should
"""

import os
import subprocess
import sys
import tempfile
import venv
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
    with tempfile.TemporaryDirectory() as folder:
        python = install_wheel(Path(folder))
        failures = [
            *failed(python, folder, ["-c", CHECK_INSTALLED], 0),
            *failed(python, folder, ["-c", MAKE_TREE], 0),
        ]
        for command, exit_code in COMMANDS:
            failures += failed(python, folder, ["-m", "vit21k", *command.split()], exit_code)
        failures += failed(python, folder, ["-c", CHECK_NAMES], 0)
    print("\n".join(failures) or "wheel: data preparation works without torch")
    return int(bool(failures))


def install_wheel(folder: Path) -> Path:
    """Build the wheel and install it with the core dependencies; return the new interpreter."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, CHECKOUT],
        check=True,
    )
    (wheel,) = folder.glob("vit21k-*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", wheel], check=True)
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
