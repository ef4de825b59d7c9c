"""What is printed after 40 mistakes of a newcomer: tests/golden/mistakes.txt.

The file is a transcript: each command, its output and its exit code. UPDATE_GOLDEN=1 rewrites it.
"""

import os
import re
import shlex
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "mistakes.txt"
COMMANDS = re.findall(r"^\$ vit21k (.*)$", GOLDEN.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture
def folder(images, run_dir, tmp_path, monkeypatch):
    """A tree, its manifests, a run, a file that is no image, and a folder without classes."""
    monkeypatch.setattr("vit21k.machine.has_nvidia_gpu", lambda: False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "notes.txt").write_text("no image\n", encoding="utf-8")
    (tmp_path / "flat").mkdir()
    (tmp_path / "one_class" / "cat").mkdir(parents=True)
    for number, path in enumerate(sorted((tmp_path / "tree").rglob("*.png"))):
        (tmp_path / "flat" / f"{number}.png").write_bytes(path.read_bytes())
        (tmp_path / "one_class" / "cat" / f"{number}.png").write_bytes(path.read_bytes())
        (tmp_path / "one_each" / str(number)).mkdir(parents=True)
        (tmp_path / "one_each" / str(number) / "a.png").write_bytes(path.read_bytes())
    (tmp_path / "empty").mkdir()
    return tmp_path


def transcript_of(vit21k, line: str, folder: Path) -> str:
    """Run a command; return it with its output and exit code, without the path of *folder*."""
    result = vit21k(*shlex.split(line))
    printed = (result.stdout + result.stderr).replace(str(folder), "DIR")
    lines = [text.rstrip() for text in printed.splitlines() if text.strip()]
    return "\n".join([f"$ vit21k {line}", *lines, f"[exit {result.code}]"])


def sections() -> dict[str, str]:
    """Return the sections of the file by command."""
    parts = GOLDEN.read_text(encoding="utf-8").split("\n\n")
    return {part.splitlines()[0].removeprefix("$ vit21k "): part.strip() for part in parts}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_mistake_is_answered_with_what_to_do(vit21k, folder, line):
    assert transcript_of(vit21k, line, folder) == sections()[line]


@pytest.mark.skipif("UPDATE_GOLDEN" not in os.environ, reason="rewrites the file")
def test_the_file_is_rewritten(vit21k, folder):
    parts = [transcript_of(vit21k, line, folder) for line in COMMANDS]
    GOLDEN.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def test_there_are_forty_mistakes_and_each_ends_with_an_error():
    assert len(COMMANDS) >= 40
    assert not [line for line, text in sections().items() if text.endswith("[exit 0]")]
