"""Help: every command has it, with examples, and it loads nothing heavy."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from vit21k.cli.app import _app_for, app
from vit21k.errors import UsageError

HEAVY = ("PIL", "datasets", "numpy", "pandas", "pyarrow", "pydantic", "torch", "xxhash", "yaml")

PRINT_HEAVY_MODULES = f"""
import sys
from vit21k.cli.app import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def _commands(parent: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in parent.commands.items():
        if getattr(command, "commands", None):
            yield from _commands(command, (*prefix, name))
        else:
            yield (*prefix, name)


COMMANDS = list(_commands(typer.main.get_command(app)))


def _help(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    "line",
    [
        "",
        "-h",
        "--help",
        "--version",
        "hash -h",
        "labels",
        "labels select -h",
        "hsh",
        "--hsh",
        "train --recipes",
    ],
)
def test_what_is_built_for_a_command_line_answers_it_as_the_complete_application_does(
    line: str,
) -> None:
    arguments = line.split()
    partial, complete = (
        CliRunner().invoke(one, arguments, prog_name="vit21k") for one in (_app_for(arguments), app)
    )

    assert (partial.exit_code, partial.output) == (complete.exit_code, complete.output)
    assert str(partial.exception) == str(complete.exception)
    assert partial.output or isinstance(partial.exception, UsageError)


def test_shells_complete_all_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_VIT21K_COMPLETE", "complete_bash")

    assert _app_for([]) is app


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_examples_that_start_with_its_name(
    command: tuple[str, ...],
) -> None:
    text = _help(*command, "-h")
    _, _, examples = text.partition("Examples")

    assert text == _help(*command, "--help")
    example_lines = [line.strip() for line in examples.split("╭")[0].splitlines() if line.strip()]
    assert example_lines
    assert all(line.startswith(("vit21k ", "torchrun ")) for line in example_lines)
    assert any(line.startswith(f"vit21k {' '.join(command)}") for line in example_lines)


def test_the_help_of_all_lists_every_command_and_the_exit_codes() -> None:
    text = _help("-h")

    assert all(command[0] in text for command in COMMANDS)
    assert "Exit codes: 0 done" in text


def _heavy_modules(*arguments: str) -> str:
    command = [sys.executable, "-c", PRINT_HEAVY_MODULES, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return result.stderr.strip()


def test_help_loads_neither_torch_nor_anything_else_that_is_slow() -> None:
    assert _heavy_modules("--help") == "[]"
    assert _heavy_modules("--version") == "[]"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_help_of_a_command_loads_nothing_but_typers_own_pydantic(
    command: tuple[str, ...],
) -> None:
    assert _heavy_modules(*command, "-h") in ("['pydantic']", "[]")  # older typers do without


def test_no_arguments_show_the_help() -> None:
    result = CliRunner().invoke(app, [])

    assert "Usage" in result.output
