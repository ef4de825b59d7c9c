"""Rewrite the generated parts of README.md (commands, exit codes, transcript) and the code map.

python tools/docs/update_docs.py                      rewrite what follows from the code
python tools/docs/update_docs.py --check              exit 1 if that is out of date
python tools/docs/update_docs.py --transcript FILE    also the first screen, from what
                                                 `vit21k demo > FILE 2>&1` printed
"""

import ast
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import typer
from generated_block import write_or_check

from vit21k.cli.app import app
from vit21k.errors import EXIT_CODES

CHECKOUT = Path(__file__).parents[2]
FIRST_SCREEN = ("hash", "relabel", "make-val", "train --stage pretrain", "predict")
LONG_LINES, HEAD_LINES, TAIL_LINES = 9, 4, 3


def command_table() -> str:
    """Return every command in the order of `--help`, with the first line of its help."""
    panels: dict[str, list[str]] = {}
    for panel, name, doc in commands(typer.main.get_command(app)):
        rows = panels.setdefault(panel, [])
        rows.append(f"| {'' if rows else panel} | `{name}` | {doc} |")
    lines = [line for rows in panels.values() for line in rows]
    return "\n".join(["| | command | what it does |", "|---|---|---|", *lines])


def commands(parent: Any, prefix: str = "", panel: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield help panel, name and first line of help of each command below *parent*."""
    for name, command in parent.commands.items():
        own_panel = panel or str(getattr(command, "rich_help_panel", "") or "")
        if getattr(command, "commands", None):
            yield from commands(command, f"{prefix}{name} ", own_panel)
        else:
            yield own_panel, prefix + name, first_line(command.help)


def exit_code_table() -> str:
    """Return what each exit code means."""
    rows = (f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    return "\n".join(["| exit code | meaning |", "|---|---|", *rows])


def code_map() -> str:
    """Return every module with the first line of its docstring, folder by folder."""
    package = CHECKOUT / "vit21k"
    lines = ["```text", "vit21k/"]
    modules = [path for path in package.glob("*.py") if path.name != "__main__.py"]
    lines += module_lines(modules, indent=2)
    for folder in sorted(path.parent for path in package.glob("*/__init__.py")):
        lines.append(f"  {folder.name + '/':<26}{docstring_line(folder / '__init__.py')}")
        lines += module_lines(list(folder.glob("*.py")), indent=4)
    return "\n".join([*lines, "```"])


def module_lines(modules: list[Path], *, indent: int) -> Iterator[str]:
    """Yield a line for each module."""
    for path in sorted(modules):
        if path.name != "__init__.py":
            yield f"{' ' * indent}{path.name:<{28 - indent}}{docstring_line(path)}"


def docstring_line(path: Path) -> str:
    """Return the first line of the docstring of the module at *path*."""
    return first_line(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))))


def first_line(text: str | None) -> str:
    """Return the first line of a docstring."""
    if not text:
        raise ValueError("a module or command has no docstring")
    return text.strip().splitlines()[0]


def first_screen(transcript: str) -> str:
    """Return the main commands of the demo and what they printed; long output lacks its middle."""
    lines = []
    for section in transcript.split("\n$ vit21k ")[1:]:
        if section.startswith(FIRST_SCREEN):
            printed = takewhile(lambda line: not line.startswith("# "), section.splitlines())
            command, *output = (line.rstrip() for line in printed)
            if len(output) > LONG_LINES:
                output = [*output[:HEAD_LINES], "...", *output[-TAIL_LINES:]]
            lines += ["", f"$ vit21k {command}", *output]
    return "\n".join(["```console", *lines[1:], "```"])


def main(arguments: list[str]) -> int:
    """Rewrite or check both pages; return the exit status."""
    blocks = {"commands": command_table(), "exit codes": exit_code_table()}
    if "--transcript" in arguments:
        path = Path(arguments[arguments.index("--transcript") + 1])
        blocks["transcript"] = first_screen(path.read_text(encoding="utf-8"))
    is_check = "--check" in arguments
    pages = {"README.md": blocks, "docs/code-map.md": {"code map": code_map()}}
    return max(
        write_or_check(CHECKOUT / name, its_blocks, check=is_check)
        for name, its_blocks in pages.items()
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
