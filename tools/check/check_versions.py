"""Run the tests with the lowest or the newest versions that pyproject.toml allows.

    python tools/check/check_versions.py lowest                       # the tests that are not slow
    python tools/check/check_versions.py newest --python python3.13   # all tests
    python tools/check/check_versions.py extras                       # tests of optional features
    python tools/check/check_versions.py lowest -- tests/models/test_vit.py -x   # pytest's own arguments

Each kind and Python has an environment in .venvs, which is brought up to date: the first run
downloads a few gigabytes.  Exit status: pytest's; 1 if the versions cannot be installed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
EXTRAS = {"lowest": "train,dev", "newest": "train,dev", "extras": "train,dev,test-extras"}
SELECTED = {"lowest": "not gpu and not slow", "newest": "not gpu", "extras": "not gpu"}
SHOWN = ("torch", "torchvision", "numpy", "pandas", "pyarrow", "pydantic", "pillow", "timm")
NUM_TRIES = 3


def main() -> int:
    """Install, show what was installed, run the tests."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=sorted(EXTRAS))
    parser.add_argument("--python", default=sys.executable, help="the interpreter; default: this")
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    args = parser.parse_args(given[:end])
    try:
        python = installed(args.kind, args.python)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        print(f"check_versions: cannot install the {args.kind} versions: {error}", file=sys.stderr)
        print("check_versions: no test has run", file=sys.stderr)
        return 1
    return run_tests(python, args.kind, given[end + 1 :])


def installed(kind: str, interpreter: str) -> Path:
    """Bring the environment of *kind* up to date; return its interpreter."""
    version = subprocess.run(
        [interpreter, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    folder = CHECKOUT / ".venvs" / f"{kind}-{version}"
    python = folder / "bin" / "python"
    if not python.exists():
        uv("venv", "--quiet", "--python", interpreter, str(folder))
    resolution = "lowest-direct" if kind == "lowest" else "highest"
    found = folder / "requirements.txt"
    extras = [word for name in EXTRAS[kind].split(",") for word in ("--extra", name)]
    compiled = ["--quiet", "--resolution", resolution, "--output-file", str(found), "--upgrade"]
    uv("pip", "compile", "--python", str(python), *compiled, *extras, "pyproject.toml")
    uv("pip", "sync", "--quiet", "--python", str(python), str(found))
    uv("pip", "install", "--quiet", "--python", str(python), "--no-deps", "--editable", ".")
    pinned = dict(line.split("==") for line in found.read_text().split() if "==" in line)
    shown = ", ".join(f"{name} {pinned[name]}" for name in SHOWN if name in pinned)
    print(f"check_versions: {kind}: Python {version}, {shown}", flush=True)
    return python


def uv(*arguments: str) -> None:
    """Run uv; try again what may be a passing failure of the network."""
    program = Path(sys.executable).with_name("uv")
    command = [str(program if program.exists() else shutil.which("uv") or "uv"), *arguments]
    environment = {"UV_HTTP_TIMEOUT": "300", **os.environ}
    for attempt in range(1, NUM_TRIES + 1):
        try:
            subprocess.run(command, cwd=CHECKOUT, env=environment, check=True)
        except subprocess.CalledProcessError:
            if attempt == NUM_TRIES:
                raise
            time.sleep(10 * attempt)
        else:
            return


def run_tests(python: Path, kind: str, arguments: Sequence[str]) -> int:
    """Run pytest with *python*; return its exit status."""
    chosen = list(arguments) or (tests_of_extras() if kind == "extras" else [])
    num_processes = [] if kind == "extras" else ["-n", "2"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "TEST_EXTRAS": str(int(kind == "extras")),
    }
    command = [str(python), "-m", "pytest", *num_processes, "-m", SELECTED[kind], *chosen]
    return subprocess.run(command, cwd=CHECKOUT, env=environment, check=False).returncode


def tests_of_extras() -> list[str]:
    """Return the files with tests that need what `dev` lacks, or that do more with it."""
    files = sorted((CHECKOUT / "tests").rglob("test_*.py"))
    wanted = re.compile(r"from conftest import .*(needs_|WITH_EXTRAS)")
    return [str(path) for path in files if wanted.search(path.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    sys.exit(main())
