"""Read lists of file names in common formats, and match the names with paths.

Forms: one name per line; a table (CSV, TSV, cells separated by blanks) with or without a header;
JSON (an array of names, pairs or objects; an object from names to values, or from values to arrays
of names); JSON lines.  UTF-8 or UTF-16, with or without a byte order mark, any line ends.
"""

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit21k.errors import ManifestError

_SUFFIX = r"\.(?:jpe?g|png|webp|bmp|gif|tiff?)"
SUFFIX = re.compile(rf"{_SUFFIX}$", re.IGNORECASE)
"""End of the name of an image."""

FILE_COLUMNS = (
    *("file_name", "filename", "file", "path", "file_path", "filepath", "image", "image_path"),
    *("image_id", "imageid", "image_name", "img", "img_path", "name", "fname", "id"),
)
"""Names of columns that contain file names, in lower case."""

_CELLS = re.compile(rf"(\S.*{_SUFFIX}|.*\S)\s+(\S.*)", re.IGNORECASE)
_LABELLED = re.compile(rf"(.*?{_SUFFIX})[\s,;].*|(\S+)\s+-?\d+", re.IGNORECASE)
_SEPARATORS = "\t,;"


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        path: The file.
        columns: Names of the columns, in lower case; None if there is no header.
        rows: Cells, all rows of one length; "" for null.
    """

    path: Path
    columns: tuple[str, ...] | None
    rows: list[tuple[str, ...]]

    def column(self, index: int) -> list[str]:
        """Return the cells of a column."""
        return [row[index] for row in self.rows]

    def file_column(self) -> int:
        """Return the index of the column with the names of files.

        Raises:
            ManifestError: No column is one, or several may be.
        """
        width = len(self.rows[0])
        if width == 1:
            return 0
        found = [k for k in range(width) if all(map(SUFFIX.search, self.column(k)))]
        if self.columns and len(found) != 1:
            of_name = [k for k, name in enumerate(self.columns) if name in FILE_COLUMNS]
            found = [k for k in of_name if k in found] or of_name
        if len(found) == 1:
            return found[0]
        if not self.columns and not found:
            return 0
        raise ManifestError(
            f"`{self.path}`: which column has the names of the images is not clear"
            + (f": {', '.join(self.columns)}" if self.columns else ""),
            hint="write a header whose column with them is called file_name",
        )


def read_text_table(path: Path) -> Table:
    """Read a list of files with values, such as labels.

    Raises:
        ManifestError: No such file, or it is not such a list.
    """
    text = read_list_text(path)
    if text.lstrip()[:1] in ("{", "["):
        return _table_of_records(path, _read_json(path, text))
    return _with_header(path, _read_cells(path, text))


def read_list_text(path: Path) -> str:
    """Return the text of a list.

    Raises:
        ManifestError: No such file, not text, or empty.
    """
    try:
        content = path.read_bytes()
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise ManifestError(f"no list at `{path}`") from None
    except UnicodeDecodeError:
        raise ManifestError(f"`{path}` is not a text file", hint="save it as UTF-8") from None
    if not text.strip():
        raise ManifestError(f"`{path}` is empty")
    return text


def _read_cells(path: Path, text: str) -> list[tuple[str, ...]]:
    """Return the cells of each line; all lines have as many.

    Blank lines count if each line is one cell, as its number identifies the file.
    """
    lines = _lines(text)
    separator = next((char for char in _SEPARATORS if char in lines[0]), None)
    matches = [_CELLS.fullmatch(line) for line in lines if line]
    if separator:
        try:
            found = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
            rows = [tuple(map(str.strip, row)) for row in found if any(row)]
        except csv.Error as error:
            raise ManifestError(f"`{path}` is not a table: {error}") from None
    elif all(matches):
        rows = [match.groups() for match in matches if match]
    else:
        rows = [(line,) for line in lines]
    width = len(rows[0])
    if bad := next((number for number, row in enumerate(rows, 1) if len(row) != width), None):
        raise ManifestError(
            f"`{path}` is not a table: row {bad:,} has {len(rows[bad - 1])} cells, row 1 {width}"
        )
    return rows


def _lines(text: str) -> list[str]:
    return [line.strip() for line in re.split("\r\n|\n|\r", text.strip())]


def _with_header(path: Path, rows: list[tuple[str, ...]]) -> Table:
    """Return a table; its first row is the header if it differs from the others like one."""
    names = tuple(cell.lower() for cell in rows[0])
    others = rows[1:]
    is_header = len(names) > 1 and (
        any(name in FILE_COLUMNS for name in names)
        or any(
            not test(names[k]) and bool(others) and all(test(row[k]) for row in others)
            for test in (SUFFIX.search, is_number)
            for k in range(len(names))
        )
    )
    if is_header and not others:
        raise ManifestError(f"`{path}` has a header and no rows")
    return Table(path, names if is_header else None, others if is_header else rows)


def is_number(cell: str) -> bool:
    """Return whether a cell is an integer, as such or as pandas writes it in columns with nulls."""
    return re.fullmatch(r"-?\d+(\.0)?", cell) is not None


def _read_json(path: Path, text: str) -> Any:
    try:
        lines = [line for line in _lines(text) if line]
        is_lines = path.suffix.lower() in (".jsonl", ".ndjson")
        if is_lines or (len(lines) > 1 and all(line.startswith("{") for line in lines)):
            return [json.loads(line) for line in lines]
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"`{path}` is not JSON: {error}") from None


def _table_of_records(path: Path, found: Any) -> Table:
    if isinstance(found, dict) and isinstance(found.get("labels"), list):
        found = found["labels"]  # of StyleGAN
    if isinstance(found, dict):
        found = list(_pairs_of(found))
    if found and isinstance(found, list):
        if all(isinstance(record, dict) for record in found):
            columns = tuple(dict.fromkeys(name for record in found for name in record))
            rows = [tuple(_cell(record.get(name)) for name in columns) for record in found]
            return Table(path, tuple(map(str.lower, columns)), rows)
        pairs = [record if isinstance(record, list) else [record] for record in found]
        if len({len(pair) for pair in pairs}) == 1:
            return Table(path, None, [tuple(map(_cell, pair)) for pair in pairs])
    raise ManifestError(
        f"`{path}` is JSON of another form",
        hint='write {"1.jpg": "cat", ...}, [{"file_name": "1.jpg", "label": "cat"}, ...] or '
        '{"cat": ["1.jpg", ...], ...}',
    )


def _pairs_of(found: dict[str, Any]) -> Iterator[list[Any]]:
    """Yield name and value of an object, which may map values to names."""
    for key, value in found.items():
        if isinstance(value, list) and not SUFFIX.search(key):
            yield from ([name, key] for name in value)
        else:
            yield [key, value]


def _cell(value: Any) -> str:
    """Return a value as text; of several values, one per line."""
    if isinstance(value, list):
        return "\n".join(map(_cell, value))
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).strip()


def read_names(path: Path) -> list[str]:
    """Read the distinct file names of a list; other columns are ignored.

    Raises:
        ManifestError: No such file, or it is not a list of files.
    """
    text = read_list_text(path)
    if text.lstrip()[:1] not in ("{", "[") and path.suffix.lower() not in (".csv", ".tsv"):
        return list(dict.fromkeys(_name_in(line) for line in _lines(text) if line))
    table = read_text_table(path)
    return list(dict.fromkeys(name for name in table.column(table.file_column()) if name))


def _name_in(line: str) -> str:
    """Return the name of a file in a line that may have a label after it."""
    match = None if SUFFIX.search(line) else _LABELLED.fullmatch(line)
    return match[1] or match[2] if match else line


def without_suffix(name: str) -> str:
    """Return the name of an image without its suffix."""
    return SUFFIX.sub("", name)


class FileNames:
    """Finds the name in a list that matches a path.

    In this order: the path itself or what is left of it without its first folders is a name; a name
    is the path below other folders; the same without the suffixes of images, so that `.webp` copies
    are found by the names of `.JPEG` files.

    Args:
        names: Without repeats; with or without folders, `./` before them, suffixes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._cleaned = [_cleaned(name) for name in names]
        self._exact = _index(self._cleaned)
        self._stems = _index(map(without_suffix, self._cleaned))
        self._below: dict[tuple[int, bool], dict[str, list[int]]] = {}

    def find(self, path: str) -> list[int]:
        """Return the indices of the names that match *path*; several if it is ambiguous."""
        return self._find(path, self._exact, False) or self._find(
            without_suffix(path), self._stems, True
        )

    def _find(self, path: str, index: dict[str, list[int]], is_stem: bool) -> list[int]:
        rest = path
        while rest:
            if found := index.get(rest):
                return found
            rest = rest.partition("/")[2]
        return self._names_below(path.count("/") + 1, is_stem).get(path, [])

    def _names_below(self, num_parts: int, is_stem: bool) -> dict[str, list[int]]:
        """Return the names by their last parts."""
        key = num_parts, is_stem
        if key not in self._below:
            names = map(without_suffix, self._cleaned) if is_stem else self._cleaned
            self._below[key] = _index("/".join(name.split("/")[-num_parts:]) for name in names)
        return self._below[key]


def _index(names: Iterable[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        found.setdefault(name, []).append(index)
    return found


def _cleaned(name: str) -> str:
    name = name if "/" in name else name.replace("\\", "/")
    return name.removeprefix("./").lstrip("/")
