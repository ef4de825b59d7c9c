"""The site of `make docs`: its navigation, its generated pages and its links, without MkDocs."""

from pathlib import Path

import docs_site
import typer.main
import yaml
from command_options import option_lines

from vit21k.cli.app import app

CHECKOUT = Path(__file__).parents[2]
GENERATED = {"reference/cli.md", "reference/api.md", "reference/recipe-fields.md"}


def pages_in(nav: object) -> list[str]:
    """Return the paths of a navigation of MkDocs."""
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in entries for page in pages_in(entry)]


def test_the_navigation_has_every_page_once() -> None:
    config = yaml.safe_load((CHECKOUT / ".mkdocs.yml").read_text(encoding="utf-8"))
    docs = CHECKOUT / "docs"
    written = {str(path.relative_to(docs)) for path in docs.rglob("*.md")}

    assert sorted(pages_in(config["nav"])) == sorted(
        written | GENERATED | set(docs_site.COPIED.values())
    )


def test_the_reference_has_every_command_and_option() -> None:
    page = docs_site.cli_page()

    names = [words for _, words, _ in docs_site.commands(typer.main.get_command(app))]
    assert [name for name in names if f"\n### {name}\n" not in page] == []
    assert "| `--per-class " in page
    assert "env var: VIT21K\\_LABELS\\_NEAR\\_DUPLICATES\\_NUM\\_WORKERS" in page


def test_links_are_those_of_the_site() -> None:
    markdown = (
        "[a](../../CHANGELOG.md) [b](../queries.md#x) [c](../../tests/docs/test_docs.py) "
        "[d](https://example.org/) `[e](../../x)`"
    )

    class Page:
        class file:  # noqa: N801 (as MkDocs names it)
            src_uri = "internals/packs.md"

    assert docs_site.on_page_markdown(markdown, page=Page) == (
        "[a](../reference/changelog.md) [b](../queries.md#x) c (`tests/docs/test_docs.py`) "
        "[d](https://example.org/) `[e](../../x)`"
    )


def test_pages_from_outside_docs_have_links_of_the_site_too() -> None:
    class Page:
        class file:  # noqa: N801
            src_uri = "reference/changelog.md"

    markdown = docs_site.on_page_markdown("[packs](docs/internals/packs.md)", page=Page)

    assert markdown == "[packs](../internals/packs.md)"


def test_text_is_shown_as_it_is_and_code_is_kept() -> None:
    assert docs_site.escaped("a|b <c> `d|e`") == r"a\|b &lt;c> `d|e`"


def test_the_api_names_classes_that_exist() -> None:
    page = docs_site.api_page()

    assert "::: vit21k.read_manifest" in page
    assert all(f".{name}\n" in page for name in docs_site.API_CLASSES)


def test_every_field_of_a_recipe_is_in_the_reference() -> None:
    page = docs_site.recipe_fields_page()

    assert "| `optim.lr` |" in page
    assert "\n## schedule\n" in page


def test_options_are_listed_with_their_defaults() -> None:
    lines = list(option_lines())

    option = "vit21k labels near-duplicates: --max-pairs "
    assert [line.rpartition(" = ")[2] for line in lines if line.startswith(option)] == ["480"]
    assert "vit21k verify: --decode" in lines
