"""Parts of a Markdown file that a tool writes: from ``<!-- begin X -->`` to ``<!-- end X -->``."""

from collections.abc import Mapping
from pathlib import Path


def with_blocks(text: str, blocks: Mapping[str, str]) -> str:
    """Return *text* with the content of each named block replaced.

    Raises:
        ValueError: *text* does not have exactly one block of a name.
    """
    for name, content in blocks.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"there must be one block `{name}`")
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = before + begin + content.strip("\n") + "\n" + end + after
    return text


def write_or_check(path: Path, blocks: Mapping[str, str], *, check: bool) -> int:
    """Rewrite the blocks of *path*, or with *check* only compare; return the exit status."""
    text = path.read_text(encoding="utf-8")
    wanted = with_blocks(text, blocks)
    if not check:
        path.write_text(wanted, encoding="utf-8")
        return 0
    if text != wanted:
        print(f"{path} is out of date; run the tool without --check")
    return int(text != wanted)
