"""The repository uses one word for one thing: the glossary of CONTRIBUTING.md, not older terms."""

import ast
import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
ROOTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "data_manifests",
    "docs",
    "tests",
    "tools",
    "vit21k",
)
"""Files, and folders whose files are read, of the suffixes below."""
SUFFIXES = {".c", ".h", ".html", ".j2", ".js", ".md", ".py", ".yaml", ".yml"}

# What not to write -> what to write.  Regular expressions of lower-case text; those with a
# look-ahead leave the legitimate uses of a word alone.
TERMS = {
    r"pictures?|photographs?|(?<!\|)photos": "image",
    r"hang(s|ing)? on|hung on": "depends on",
    r"(go|goes|going|gone|went) on(?! (sale|disk))": "resume, continue",
    r"mend(s|ed|ing)?|put(s|ting)? right": "fix, repair",
    r"(?<![.|])(?<!def )tells?|told|telling": "report, detect, identify",
    r"says? of|said (aloud|not to be)": "report, warn about",
    r"odd(?! (number|side|margin|width|height|row|column|size|step)s?\b)": "unusual, malformed",
    r"(what is|the) plain( case)?(?! (text|file|loop|training|model)\b)": "the fast path",
    r"plain (jpeg|image)s?": "baseline JPEG",
    r"(leave|leaves|leaving|left) (\w+ )?out": "skipped, excluded",
    r"taken for": "treated as",
    r"crowded": "overlabelled",
    r"places": "offsets, paths, output paths",
    r"memory of (earlier|previous|former) runs": "cache",
    r"(un)?digested|digesting|to digest": "hashed",
    r"parts? of (an|the) (archive|tar)": "member, class tar",
    r"turned around": "transposed",
    r"room (for|that|of)": "scratch, arena",
    r"gr[ea]y (batch|images|pictures)": "dummy batch",
    r"ask(s|ed|ing)? ahead": "prefetch",
    r"keyed draws?|(each|every|random) draws?|draws of": "random values, counter-based RNG",
    r"watch(es|ed|ing)?|hears? of|listeners?": "log, monitor, callback, reporter",
    r"learners?": "train state",
    r"substitutes?": "replacement",
    r"half-(made|done|written|finished)|the whole of": "partial, complete",
    r"(?<![\".])seal(s|ed|ing)?": "checksum, checksummed",
    r"comes? as an?|lies?|lying|(next|close) by|beside": "is stored at, is next to",
    r"(is|are|be) (directly )?a kind of": "hyponym of, is-a",
    r"by hand": "manually",
    r"machines? that others share": "shared host",
    r"reckons?|reckoned": "computes, estimates",
    r"to the (bit|byte)|same to the": "bit-identical, byte-identical",
    r"(what|that) (it|they) do(es)? not know": "unknown keys",
    r"how far": "progress",
    r"what [\w ]{1,30} makes? of": "(say it directly)",
    r"other hands|undisturbedly|whatsoever": "(say it directly)",
}
FOUND = re.compile(rf"\b(?:{'|'.join(TERMS)})\b")  # of lower case: IGNORECASE is slow

# In pages, what commands print and what code names is not prose.
GENERATED = re.compile(r"<!-- begin ([\w ]+) -->\n.*?<!-- end \1 -->", re.DOTALL)
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def paths() -> list[Path]:
    """Return the files to read."""
    roots = [CHECKOUT / name for name in ROOTS]
    found = [path for root in roots for path in (root, *sorted(root.rglob("*")))]
    return [path for path in found if path.suffix in SUFFIXES]


def prose(path: Path) -> str:
    """Return the text of a file, with spaces for what is no prose, so that lines stay."""
    text = path.read_text(encoding="utf-8")
    if CHECKOUT / "tests" in path.parents:
        return names_and_docstrings(text) if path.suffix == ".py" else ""
    if path.suffix == ".md":
        for pattern in (GENERATED, CODE):
            text = pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    return text


def names_and_docstrings(text: str) -> str:
    """Return what a test module documents: names of tests, with spaces; docstrings."""
    nodes = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]
    names = [str(getattr(node, "name", "")).replace("_", " ") for node in nodes]
    docs = [ast.get_docstring(node) or "" for node in nodes]
    return "\n".join(name for name in names if name.startswith("test ")) + "\n".join(docs)


def older_terms(text: str) -> list[str]:
    """Return the terms of *text* that another one has replaced, with their lines."""
    return [
        f"line {text.count(chr(10), 0, match.start()) + 1}: `{match[0]}`"
        f" -> {next(new for old, new in TERMS.items() if re.fullmatch(old, match[0]))}"
        for match in FOUND.finditer(text.lower())
    ]


@pytest.mark.parametrize("path", paths(), ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_a_file_uses_the_terms_of_the_glossary(path: Path) -> None:
    assert older_terms(prose(path)) == []


def test_older_terms_are_found_and_legitimate_uses_are_not() -> None:
    assert older_terms("a\nOne picture goes on.") == [
        "line 2: `picture` -> image",
        "line 2: `goes on` -> resume, continue",
    ]
    assert older_terms("An odd number of memory pages depends on the plain model.") == []
