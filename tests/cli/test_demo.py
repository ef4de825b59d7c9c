"""`vit21k demo`: it runs, finds what was planted, and would notice if it were not found."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from vit21k.cli.demo import Check, Printed, steps_of
from vit21k.demo_tree import DemoTree, make_demo_tree


def _demo(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vit21k", "demo", str(folder)]
    environment = {**os.environ, "VIT21K_MANIFESTS": "not-to-be-used"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("demo") / "demo"
    result = _demo(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result.stdout, result.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> DemoTree:
    return make_demo_tree(tmp_path_factory.mktemp("same") / "ImageNet21K")


def _checks(folder: Path, tree: DemoTree, step_number: int, out: str = "") -> list[Check]:
    steps = list(steps_of(tree, folder / "data_manifests", folder / "runs"))
    return list(steps[step_number].checks(Printed(out, "")))


@pytest.mark.slow
def test_every_check_of_the_demo_holds(finished: tuple[Path, str, str]) -> None:
    _, shown, told = finished

    assert "NOT OK" not in shown
    assert shown.count("\n# ok: ") >= 15
    assert " 0 do not" in told


@pytest.mark.slow
def test_every_command_is_shown_as_it_is_typed(finished: tuple[Path, str, str]) -> None:
    typed = [line.split()[2] for line in finished[1].splitlines() if line.startswith("$ vit21k")]

    assert typed == ["hash", "relabel", "make-val", "train", "train", "eval", "predict"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step_number", "wrong"),
    [
        (0, {"num_files": 736}),
        (0, {"empty": Path("images/n02391049/another.JPEG")}),
        (1, {"num_images": 721}),
        (1, {"num_multi_label": 5}),
        (2, {"num_classes": 13}),
    ],
)
def test_what_was_not_found_is_noticed(
    finished: tuple[Path, str, str], tree: DemoTree, step_number: int, wrong: dict[str, object]
) -> None:
    folder = finished[0]

    assert all(check.holds for check in _checks(folder, tree, step_number))
    assert not all(check.holds for check in _checks(folder, replace(tree, **wrong), step_number))


@pytest.mark.slow
def test_a_model_that_guesses_is_noticed(finished: tuple[Path, str, str], tree: DemoTree) -> None:
    def judged(accuracy: float) -> list[bool]:
        report = json.dumps({"val/num_images": 120, "val/prec@1": accuracy})
        return [check.holds for check in _checks(finished[0], tree, 5, report)]

    assert judged(0.9) == [True, True]
    assert judged(1 / 12) == [True, False]


@pytest.mark.slow
def test_the_readmes_python_runs_where_the_demo_ran(finished: tuple[Path, str, str]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = readme.partition("```python\n")[2].partition("```")[0]
    (finished[0] / "cat.jpg").write_bytes(b"<html>")
    command = [sys.executable, "-c", code]

    result = subprocess.run(command, cwd=finished[0], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert "cat.jpg" in result.stdout


@pytest.mark.slow
def test_the_tree_is_only_read(finished: tuple[Path, str, str], tree: DemoTree) -> None:
    def contents(root: Path) -> dict[str, bytes]:
        files = [path for path in root.rglob("*") if path.is_file()]
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}

    assert contents(finished[0] / "ImageNet21K") == contents(tree.root)


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").touch()

    result = _demo(tmp_path)

    assert result.returncode == 2
    assert "is not empty, and was not created by `demo`" in result.stderr
    assert "hint: name a new folder: `vit21k demo DIR`" in result.stderr
    assert (tmp_path / "runs" / "mine").exists()
