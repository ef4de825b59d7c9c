"""Docstrings -> help: paragraphs that a terminal may break where it likes.

Typer joins the lines of the first paragraph only, so that the others come out ragged.
"""

import inspect

import typer


def join_paragraphs(app: typer.Typer) -> None:
    """Take the help of every command of *app* from its docstring, each paragraph one line."""
    for command in app.registered_commands:
        if command.callback is not None and command.help is None:
            command.help = joined(inspect.getdoc(command.callback) or "")
    for group in app.registered_groups:
        if group.typer_instance is not None:
            join_paragraphs(group.typer_instance)


def joined(text: str) -> str:
    """Return *text* with the lines of each paragraph joined, but for those that are indented."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        paragraph if paragraph.startswith(" ") else paragraph.replace("\n", " ")
        for paragraph in paragraphs
    )
