"""Commands, options and recipes in the pages and the help exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from vit21k.cli.app import app
from vit21k.recipe.load import load_recipe

CHECKOUT = Path(__file__).parents[2]
PAGES = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md")])
TEXTS = {
    str(page.relative_to(CHECKOUT)): page.read_text(encoding="utf-8")
    for page in PAGES
    if page.name != "CHANGELOG.md"
}
BLOCK = re.compile(r"^```(?:sh|console|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS: Any = typer.main.get_command(app)
INLINE = re.compile(r"`(vit21k [^`]+)`")


def lines_of(text: str) -> Iterator[str]:
    """Yield the lines with a command of ours in the blocks and the sentences of a page."""
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            yield from re.findall(r"(?:^|\$ |-m |&& )(vit21k [^|;>&]*)", line)
    yield from (part for line in INLINE.findall(text) for part in line.split(" && "))


def examples_of(command: Any) -> Iterator[str]:
    """Yield the examples in the help of a command and of those below it."""
    yield from re.findall(r"^\s*(vit21k [^\n|>]*)$", command.help or "", re.MULTILINE)
    for below in getattr(command, "commands", {}).values():
        yield from examples_of(below)


def unknown_of(line: str) -> list[str]:
    """Return the options of a command line that the command does not have, or its name."""
    words = shlex.split(line, comments=True)[1:]
    command = COMMANDS
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    if hasattr(command, "commands"):
        return [word for word in words[:1] if not word.startswith(("-", "<", "..."))]
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    known |= {"-h", "--help"}
    words = words[: words.index("--")] if "--" in words else words
    return [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]


@pytest.mark.parametrize("page", TEXTS)
def test_commands_on_a_page_and_their_options_exist(page: str) -> None:
    wrong = {line: unknown for line in lines_of(TEXTS[page]) if (unknown := unknown_of(line))}

    assert wrong == {}


def test_examples_in_the_help_exist() -> None:
    lines = list(examples_of(COMMANDS))

    assert len(lines) > 40
    assert {line: unknown for line in lines if (unknown := unknown_of(line))} == {}


def test_what_does_not_exist_is_found() -> None:
    assert unknown_of("vit21k pack --lossless --owt x") == ["--owt"]
    assert unknown_of("vit21k labels konflicts") == ["konflicts"]
    assert unknown_of("vit21k launch slurm --nodes 4 -- --anything") == []


@pytest.mark.parametrize("page", TEXTS)
def test_recipes_named_on_a_page_exist(page: str) -> None:
    for name in re.findall(r"--recipe ([a-z0-9_]+)\b(?![./])", TEXTS[page]):
        load_recipe(name)


def test_the_recipe_shown_as_an_example_is_usable(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", TEXTS["docs/recipes.md"], re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")

    assert load_recipe(str(tmp_path / "mine.yaml")).total_steps == 2000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_a_link_leads_to_a_heading(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    missing = [
        f"{file}#{anchor}"
        for file, anchor in links
        if "://" not in file and anchor not in anchors_of(page.parent / file if file else page)
    ]

    assert missing == []


def anchors_of(page: Path) -> set[str]:
    """Return what GitHub calls the headings of a page."""
    if page.suffix != ".md":
        return set()
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
