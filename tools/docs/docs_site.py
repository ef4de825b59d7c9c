"""MkDocs hook of `make docs`: generate the reference pages, and adapt links for the site.

Generated: the command line (from the Typer app), the Python API (for mkdocstrings), the fields of
recipes, and the site's copies of Markdown files outside docs/.
"""

import json
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import vit21k
from vit21k.cli.app import app

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = Path(vit21k.__file__).parent
COPIED = {
    "CHANGELOG.md": "reference/changelog.md",
    "CONTRIBUTING.md": "reference/contributing.md",
    "data_manifests/README.md": "reference/manifests.md",
}
"""Path in the checkout -> path in the site."""
API_CLASSES = ("ModelCard", "Prediction", "ClassScore")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.DOTALL | re.MULTILINE)


def on_files(files: Any, *, config: Any) -> Any:
    """Add the generated pages; MkDocs calls it with the files of docs/."""
    from mkdocs.structure.files import File  # noqa: PLC0415 (only `make docs` has it)

    pages = {
        "reference/cli.md": cli_page(),
        "reference/api.md": api_page(),
        "reference/recipe-fields.md": recipe_fields_page(),
        **{site: (CHECKOUT / path).read_text("utf-8") for path, site in COPIED.items()},
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the text of a page with links that work on the site; MkDocs calls it."""
    site = page.file.src_uri
    checkout = next((path for path, copy in COPIED.items() if copy == site), f"docs/{site}")
    parts = CODE.split(markdown)  # every other one is code
    parts[::2] = [
        LINK.sub(lambda link: site_link(link, checkout, site), text) for text in parts[::2]
    ]
    return "".join(parts)


def site_link(link: re.Match[str], page: str, site: str) -> str:
    """Return a link of *page* (its path in the checkout) as it must be on the page *site*.

    A link to a file that is not on the site becomes its text.
    """
    mark, text, target = link.groups()
    path, _, anchor = target.partition("#")
    if "://" in target or not path:
        return link[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
    if path in COPIED:
        path = COPIED[path]
    elif path.startswith("docs/"):
        path = path.removeprefix("docs/")
    else:
        return text if text.startswith("`") else f"{text} (`{path}`)"
    path = posixpath.relpath(path, posixpath.dirname(site) or ".")
    return f"{mark}[{text}]({path}{'#' + anchor if anchor else ''})"


def cli_page() -> str:
    """Return the reference of all commands."""
    lines = ["# Command line", "", "What `-h` prints. [Commands](../commands.md) lists them.", ""]
    panel = ""
    for its_panel, words, command in commands(typer.main.get_command(app)):
        if its_panel != panel:
            lines += [f"## {its_panel}", ""]
        panel = its_panel
        lines += command_section(words, command)
    return "\n".join(lines)


def commands(parent: Any, words: str = "vit21k", panel: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield help panel, words on the command line, and the command, in the order of `--help`."""
    for name, command in parent.commands.items():
        its_panel = panel or str(getattr(command, "rich_help_panel", "") or "")
        if getattr(command, "commands", None):
            yield from commands(command, f"{words} {name}", its_panel)
        else:
            yield its_panel, f"{words} {name}", command


def command_section(words: str, command: Any) -> Iterator[str]:
    """Yield the lines of one command: help, examples, and a table of arguments and options."""
    prefix = re.sub(r"[ -]", "_", words).upper()
    context = typer.Context(command, info_name=words, auto_envvar_prefix=prefix)
    text, _, examples = (command.help or "").partition("[bold]Examples[/bold]")
    yield from (f"### {words}", "", escaped(text.strip()), "")
    yield from ("```console", command.get_usage(context).removeprefix("Usage: "), "```", "")
    yield from ("| argument or option | meaning |", "|---|---|")
    for param in command.params:
        record = param.get_help_record(context)
        if record is not None:
            name, meaning = record
            yield f"| `{name}` | {escaped(meaning)} |"
    yield ""
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    if lines:
        yield from ("```console", *(f"$ {line}" for line in lines), "```", "")


def escaped(text: str) -> str:
    """Return *text* for Markdown: what is not code is shown as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    shown = [
        part
        if part.startswith("`")
        else re.sub(r"([|*_\[\]~^])", r"\\\1", part).replace("<", "&lt;")
        for part in parts
    ]
    return "".join(shown)


def api_page() -> str:
    """Return the page of which mkdocstrings makes the reference of the Python API."""
    names = [f"vit21k.{name}" for name in vit21k.__all__]
    classes = [f"{module_of(name)}.{name}" for name in API_CLASSES]
    blocks = {
        "## Functions": names,
        "## Classes": classes,
        "## Errors": ["vit21k.errors"],
    }
    lines = ["# Python API", "", "`import vit21k` imports torch only when a function needs it.", ""]
    for heading, objects in blocks.items():
        lines += [heading, ""]
        for name in objects:
            lines += [f"::: {name}", ""]
    return "\n".join(lines)


def module_of(name: str) -> str:
    """Return the module that defines the class *name*."""
    (path,) = (
        path
        for path in PACKAGE.rglob("*.py")
        if re.search(rf"^class {name}\b", path.read_text("utf-8"), re.MULTILINE)
    )
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def recipe_fields_page() -> str:
    """Return the table of all fields of a recipe, a section for each section of recipes."""
    command = [sys.executable, "-m", "vit21k", "recipes", "fields", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    printed = subprocess.run(command, capture_output=True, check=True, env=environment).stdout
    lines = ["# Recipe fields", "", "The same text as `vit21k recipes fields` prints."]
    section = None
    for field in json.loads(printed):
        its_section, _, _ = field["name"].rpartition(".")
        if its_section != section:
            lines += ["", f"## {its_section or 'Top level'}", ""]
            lines += ["| field | values | default | meaning |", "|---|---|---|---|"]
            section = its_section
        values, meaning = escaped(str(field["values"])), escaped(field["meaning"])
        lines.append(f"| `{field['name']}` | {values} | `{field['default']}` | {meaning} |")
    return "\n".join(lines)
