"""Facts about the code of a checkout, as lines of `name: value`: to compare two states.

    PYTHONPATH=CHECKOUT python tools/check/code_facts.py CHECKOUT [IMAGES]

Counted are `vit21k/**/*.py` and its C.  An import closure is of imports at module level.  With IMAGES,
a folder of class folders, it hashes and trains the recipe `tiny` for 2 and for 6 steps: a function
that is called 4 times more in the second run is on the path of a training step.
"""

import ast
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

CLOSURES = {
    "training.run": ("training.run",),
    "hash_tree": ("prep.hash_tree", "hashing.hash_tree"),
    "inference.predict": ("inference.predict",),
}
TRACED = """
import collections, json, runpy, sys, threading
calls = collections.Counter()
def note(frame, event, _argument):
    if event == "call" and "/vit21k/" in frame.f_code.co_filename:
        calls[frame.f_code.co_filename.rpartition("/vit21k/")[2] + " " + frame.f_code.co_qualname] += 1
sys.argv = ["vit21k", *sys.argv[2:]]
threading.setprofile(note)
sys.setprofile(note)
try:
    runpy.run_module("vit21k", run_name="__main__")
finally:
    sys.setprofile(None)
    json.dump(calls, open({out!r}, "w"))
"""
NUM_ROUNDS = 9


def imports(path: Path, package: Path) -> Iterator[str]:
    """Yield the modules that a file imports at module level, as paths below the package."""
    nodes: list[ast.stmt] = list(ast.parse(path.read_text()).body)
    for node in nodes:
        if isinstance(node, ast.Try):
            nodes += node.body
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            file = name.removeprefix("vit21k.").replace(".", "/") + ".py"
            if name.startswith("vit21k.") and (package / file).is_file():
                yield file


def closure(names: Sequence[str], package: Path) -> int:
    """Return the number of modules that importing a module imports, itself included."""
    todo = [name.replace(".", "/") + ".py" for name in names]
    todo = [file for file in todo if (package / file).is_file()]
    found = set(todo)
    while todo:
        new = set(imports(package / todo.pop(), package)) - found
        found |= new
        todo += new
    return len(found)


def static_facts(package: Path) -> Iterator[tuple[str, object]]:
    """Yield counts of modules, lines and functions."""
    paths = sorted(package.rglob("*.py"))
    modules = [path for path in paths if path.name != "__init__.py"]
    lines = {path: len(path.read_text().splitlines()) for path in paths}
    functions = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    yield "modules, without `__init__`", len(modules)
    yield "lines of Python", sum(lines.values())
    c_files = [path for path in package.rglob("*") if path.suffix in (".c", ".h")]
    yield "lines of C", sum(len(path.read_text().splitlines()) for path in c_files)
    yield "functions", len(functions)
    yield "lines of a function, median", statistics.median(functions)
    yield "lines of a function, 90th percentile", functions[len(functions) * 9 // 10]
    yield "modules under 40 lines", sum(lines[path] < 40 for path in modules)
    for name, files in CLOSURES.items():
        yield f"import closure of {name}", closure(files, package)


def traced(arguments: Sequence[str], folder: Path) -> dict[str, int]:
    """Run a command; return the number of calls of each function of vit21k."""
    out = folder / "calls.json"
    command = [sys.executable, "-c", TRACED.replace("{out!r}", repr(str(out))), "-", *arguments]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return dict(json.loads(out.read_text()))


def path_facts(images: Path, folder: Path) -> Iterator[tuple[str, object]]:
    """Yield how many modules and functions a training step and a recipe pass through."""
    for command in (["hash", str(images)], ["relabel"], ["make-val", "--per-class", "1"]):
        arguments = [sys.executable, "-m", "vit21k", *command]
        subprocess.run(arguments, cwd=folder, check=True, capture_output=True)
    runs = []
    for steps in (2, 6):
        options = ("--recipe", "tiny", "--run-dir", f"run{steps}", "--device", "cpu")
        sets = ("--set", f"total_steps={steps}", "--set", "schedule.warmup_steps=1")
        few = ("--set", "run.log_every_steps=100", "--set", "data.global_batch_size=8")
        runs.append(traced(["train", "--stage", "pretrain", *options, *sets, *few], folder))
    short, long = runs
    path = [name for name, number in long.items() if number - short.get(name, 0) >= 4]
    yield "modules on the path of a training step", len({name.split()[0] for name in path})
    yield "functions on the path of a training step", len(path)
    shown = traced(["recipes", "show", "tiny"], folder)
    called = {name for name in shown if "<module>" not in name and "<lambda>" not in name}
    called = {name for name in called if name.split()[0].startswith(("config", "recipe"))}
    yield "modules that load a recipe", len({name.split()[0] for name in called})
    yield "functions that load a recipe", len(called)


def seconds(*arguments: str) -> float:
    """Return the median of the CPU time of a command."""
    times = []
    for _ in range(NUM_ROUNDS):
        before = os.times()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = os.times()
        times.append(after[2] + after[3] - before[2] - before[3])
    return statistics.median(times)


def main() -> None:
    """Print all facts."""
    facts = list(static_facts(Path(sys.argv[1]) / "vit21k"))
    facts.append(("CPU seconds of `vit21k --help`", round(seconds("-m", "vit21k", "--help"), 2)))
    facts.append(("CPU seconds of `import vit21k`", round(seconds("-c", "import vit21k"), 3)))
    if len(sys.argv) > 2:
        with tempfile.TemporaryDirectory() as folder:
            facts += path_facts(Path(sys.argv[2]).absolute(), Path(folder))
    print("\n".join(f"{name}: {value}" for name, value in facts))


if __name__ == "__main__":
    main()
