"""`vit21k.cli.options`: paragraphs are one line each, examples stay as they are."""

import typer

from vit21k.cli.options import join_paragraphs, joined


def test_the_lines_of_a_paragraph_are_joined() -> None:
    assert joined("One\ntwo.\n\nThree\nfour.") == "One two.\n\nThree four."


def test_indented_lines_stay_lines() -> None:
    text = "One.\n\n    vit21k hash A\n    vit21k hash B"

    assert joined(text) == text


def test_commands_of_a_group_are_joined_too() -> None:
    app, group = typer.Typer(), typer.Typer()

    @group.command()
    def command() -> None:
        """First.

        Second
        line.
        """

    app.add_typer(group, name="group")
    join_paragraphs(app)

    assert group.registered_commands[0].help == "First.\n\nSecond line."
