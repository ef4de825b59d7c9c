"""Rewrite the reference of columns in data_manifests/README.md from the schemas.

python tools/docs/data_dictionary.py            rewrite
python tools/docs/data_dictionary.py --check    exit 1 if it is out of date
"""

import sys
from pathlib import Path

import pyarrow as pa
from generated_block import write_or_check

from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import KINDS, ManifestKind
from vit21k.manifest.wordnet import COLUMNS, SCHEMA

README = Path(__file__).parents[2] / "data_manifests" / "README.md"


def manifest_section(kind: ManifestKind) -> str:
    """Return what one kind of manifest is, and a table of its columns."""
    docs = {field.name: field.metadata[b"doc"].decode() for field in kind.schema}
    return "\n".join(
        [
            f"### {kind.file_name}, version {kind.version}",
            "",
            f"One row per {kind.row}. Order: {kind.order}. Made by `{kind.made_by}`.",
            "",
            column_table(kind.schema, docs, kind.may_be_null),
        ]
    )


def column_table(schema: pa.Schema, docs: dict[str, str], may_be_null: frozenset[str]) -> str:
    """Return a table of columns; only those named in *may_be_null* may hold nulls."""
    lines = ["| column | type | meaning |", "|---|---|---|"]
    for field in schema:
        null = " May be null." if field.name in may_be_null else ""
        dtype = str(field.type).replace("list<element: ", "list<").replace("list<item: ", "list<")
        lines.append(f"| `{field.name}` | {dtype} | {docs[field.name]}{null} |")
    return "\n".join(lines)


def problem_table() -> str:
    """Return the closed list of problem kinds."""
    rows = (f"| `{k}` | {k.doc} | {'no' if k.is_skipped else 'yes'} |" for k in ProblemKind)
    return "\n".join(["| kind | meaning | exit code 3 |", "|---|---|---|", *rows])


def main(*, check: bool) -> int:
    """Rewrite or check the file; return the exit status."""
    blocks = {
        "manifests": "\n\n".join(manifest_section(kind) for kind in KINDS.values()),
        "problems": problem_table(),
        "synsets": column_table(SCHEMA, COLUMNS, frozenset()),
    }
    return write_or_check(README, blocks, check=check)


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
