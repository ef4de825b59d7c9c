"""Run the DuckDB queries of docs/queries.md, and put what they give below each.

python tools/docs/run_queries.py FOLDER            FOLDER holds `data_manifests/`, with a split and
                                                   conflicts
python tools/docs/run_queries.py --query FILE      run the query in FILE in the current folder
"""

import re
import sys
from pathlib import Path
from typing import Any

import duckdb

PAGE = Path(__file__).parents[2] / "docs" / "queries.md"
QUERY = re.compile(r"```sql\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


def queries(text: str) -> list[tuple[str, str]]:
    """Return the queries of the page, each with the output that stands below it."""
    return QUERY.findall(text)


def run(query: str, folder: Path) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the names of the columns that *query* gives on the manifests in *folder*, and rows."""
    with duckdb.connect() as connection:
        connection.execute(f"SET file_search_path = '{folder}'")
        result = connection.execute(query)
        return [column[0] for column in result.description or []], result.fetchall()


def as_text(columns: list[str], rows: list[tuple[Any, ...]]) -> str:
    """Return a table with columns of even width; numbers to the right."""
    cells = [columns, *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    is_number = [
        bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        for index in range(len(columns))
    ]
    lines = (
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        ).rstrip()
        for row in cells
    )
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main(arguments: list[str]) -> int:
    """Rewrite the page, or run one query; return the exit status."""
    if arguments[0] == "--query":
        print(as_text(*run(Path(arguments[1]).read_text(encoding="utf-8"), Path.cwd())), end="")
        return 0
    folder = Path(arguments[0]).resolve()
    text = PAGE.read_text(encoding="utf-8")

    def answered(match: re.Match[str]) -> str:
        return f"```sql\n{match[1]}```\n\n```text\n{as_text(*run(match[1], folder))}```"

    PAGE.write_text(QUERY.sub(answered, text), encoding="utf-8")
    print(f"{PAGE.name}: {len(queries(text))} queries")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
