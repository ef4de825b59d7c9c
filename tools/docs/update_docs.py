"""Update the generated parts of README.md (transcript) and docs/commands.md (commands, exit codes).

python tools/docs/update_docs.py                      rewrite what follows from the code
python tools/docs/update_docs.py --check              exit 1 if that is out of date
python tools/docs/update_docs.py --transcript FILE    also the transcript, from the output of
                                                 `vit21k demo > FILE 2>&1`
"""

import sys
from itertools import takewhile
from pathlib import Path

import typer
from docs_site import commands
from generated_block import write_or_check

from vit21k.cli.app import app
from vit21k.errors import EXIT_CODES

CHECKOUT = Path(__file__).parents[2]
FIRST_SCREEN = ("hash", "relabel", "make-val", "train", "predict")
LONG_LINES, HEAD_LINES, TAIL_LINES = 9, 3, 3


def command_table() -> str:
    """Return every command in the order of `--help`, with the first line of its help."""
    panels: dict[str, list[str]] = {}
    for panel, words, command in commands(typer.main.get_command(app)):
        rows = panels.setdefault(panel, [])
        name = words.removeprefix("vit21k ")
        rows.append(f"| {'' if rows else panel} | `{name}` | {first_line(command.help)} |")
    lines = [line for rows in panels.values() for line in rows]
    return "\n".join(["| | command | what it does |", "|---|---|---|", *lines])


def exit_code_table() -> str:
    """Return what each exit code means."""
    rows = (f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    return "\n".join(["| exit code | meaning |", "|---|---|", *rows])


def first_line(text: str | None) -> str:
    """Return the first line of a docstring."""
    if not text:
        raise ValueError("a command has no docstring")
    return text.strip().splitlines()[0]


def first_screen(transcript: str) -> str:
    """Return the main commands of the demo and their output, without the middle of long ones."""
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
    commands_page = {"commands": command_table(), "exit codes": exit_code_table()}
    readme: dict[str, str] = {}
    if "--transcript" in arguments:
        path = Path(arguments[arguments.index("--transcript") + 1])
        readme["transcript"] = first_screen(path.read_text(encoding="utf-8"))
    is_check = "--check" in arguments
    pages = {"README.md": readme, "docs/commands.md": commands_page}
    return max(
        write_or_check(CHECKOUT / name, its_blocks, check=is_check)
        for name, its_blocks in pages.items()
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
