"""`vit21k doctor`."""

import json
import subprocess
from pathlib import Path

from run_processes import run_command


def _doctor(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_command("doctor", "--quick", *arguments, cwd=cwd)


def test_a_sound_installation_is_all_ok_or_worth_a_look(tmp_path: Path) -> None:
    result = _doctor("--json", cwd=tmp_path)
    report = json.loads(result.stdout)

    assert result.returncode == 0
    assert report["num_bad"] == 0
    assert {"python", "vit21k", "pyarrow", "cores", "memory", "gpu"} <= {
        fact["name"] for fact in report["facts"]
    }
    assert {fact["mark"] for fact in report["facts"]} <= {"ok", "look"}
    assert all(fact["hint"] for fact in report["facts"] if fact["mark"] != "ok")


def test_something_bad_is_named_and_ends_with_exit_code_1(tmp_path: Path) -> None:
    result = _doctor("--root", "nowhere", cwd=tmp_path)

    assert result.returncode == 1
    assert "bad   image root" in result.stdout
    assert "bad: image root: name the image root with --root" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_counts_on_the_last_line_add_up(tmp_path: Path) -> None:
    result = _doctor("--root", "nowhere", cwd=tmp_path)
    last = result.stderr.splitlines()[-1]
    num_facts, *by_mark = (int(word) for word in last.split() if word.isdigit())

    assert len(result.stdout.splitlines()) == num_facts + 1  # the heading
    assert sum(by_mark) == num_facts
