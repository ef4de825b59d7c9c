"""Print every command with its arguments and options, one per line: compare two releases with diff.

python tools/docs/command_options.py > options.txt
PYTHONPATH=OTHER_CHECKOUT python tools/docs/command_options.py | diff - options.txt
"""

from collections.abc import Iterator

import typer
from docs_site import commands

from vit21k.cli.app import app


def option_lines() -> Iterator[str]:
    """Yield `command: names METAVAR = default` of every argument and option."""
    for _, words, command in sorted(commands(typer.main.get_command(app)), key=lambda c: c[1]):
        yield words
        context = typer.Context(command, info_name=words)
        for param in command.params:
            record = param.get_help_record(context)
            if record is not None and param.name != "help":
                default = param.get_default(context, call=False)
                shown = "" if default in (None, False) else f" = {default}"
                yield f"{words}: {record[0]}{shown}"


if __name__ == "__main__":
    print("\n".join(option_lines()))
