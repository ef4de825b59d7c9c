"""Help texts: paragraphs are one line each, examples stay as they are."""

from typer.testing import CliRunner

from vit21k.cli.app import app


def test_the_lines_of_a_paragraph_are_joined_and_those_of_examples_are_not() -> None:
    text = CliRunner().invoke(app, ["labels", "expand", "-h"], env={"COLUMNS": "300"}).output

    assert "With --into-labels: new images, train and val manifests with both as labels." in text
    assert "vit21k labels expand --levels 1" in [line.strip() for line in text.splitlines()]
