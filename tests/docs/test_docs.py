"""Documentation: what is generated is current, and what is linked is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from generated_block import with_blocks
from update_docs import first_screen

CHECKOUT = Path(__file__).parents[2]
PAGES = sorted(
    [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md"), *CHECKOUT.glob("data_manifests/*.md")]
)
DEMO = """\
# 9 files
$ cd demo

$ vit21k hash ImageNet21K
hash: 8 files
# look: exit code 3
# ok: files hashed: 8

$ vit21k eval runs/tiny
0.5

$ vit21k train --stage pretrain --recipe tiny
1
2
3
4
5
6
7
8
9
10
# look: the loss
# ok: the loss fell

demo: 3 checks: 3 hold, 0 do not
"""


def _tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECKOUT / "tools/docs" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "tool", ["update_docs.py", "data_dictionary.py", "models_page.py", "recipes_page.py"]
)
def test_what_is_generated_is_current(tool: str) -> None:
    result = _tool(tool, "--check")

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_what_a_page_links_to_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [
        link for link in links if "://" not in link and not (page.parent / link.strip()).exists()
    ]

    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    pattern = r"(?<![\w./])(?:tests|tools|docs|vit21k)/[\w./-]+\.(?:py|md|cpp|yaml)\b"
    named = set(re.findall(pattern, page.read_text(encoding="utf-8")))

    assert [name for name in sorted(named) if not (CHECKOUT / name).is_file()] == []


def test_task_pages_fit_on_three_screens() -> None:
    lines = {
        page.name: page.read_text(encoding="utf-8").count("\n")
        for page in CHECKOUT.glob("docs/*.md")
        if page.name not in {"queries.md"}
    }

    assert {name: count for name, count in lines.items() if count > 150} == {}


def test_the_readme_is_short_enough_to_be_read() -> None:
    lines = (CHECKOUT / "README.md").read_text(encoding="utf-8").splitlines()

    assert len(lines) <= 250


def test_the_first_screen_shows_the_main_commands_and_what_they_printed() -> None:
    assert first_screen(DEMO).splitlines() == [
        "```console",
        "$ vit21k hash ImageNet21K",
        "hash: 8 files",
        "",
        "$ vit21k train --stage pretrain --recipe tiny",
        "1",
        "2",
        "3",
        "...",
        "8",
        "9",
        "10",
        "```",
    ]


def test_a_block_is_replaced_and_the_rest_stays() -> None:
    text = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n"

    assert with_blocks(text, {"x": "new"}) == text.replace("old", "new")
    with pytest.raises(ValueError, match="one block `y`"):
        with_blocks(text, {"y": "new"})
