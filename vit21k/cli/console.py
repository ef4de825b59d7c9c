"""Where output goes: results to stdout, everything else to stderr."""

import json
import os
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from vit21k.errors import Vit21kError, one_line

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

_NUMBER = re.compile(r"%[-.0-9]*l*[duxi]|\d+")  # or a format code in a message of C
_PLAIN_LINE_SECONDS = 10.0
_BAR_SECONDS = 0.1
_ENDLESS = 1 << 20  # columns


def _safe(message: str) -> str:
    """Return *message* without control characters: it may contain file names."""
    return "\n".join(one_line(line) for line in message.split("\n"))


@contextmanager
def decoder_messages_counted() -> Iterator[None]:
    """Count the warnings of Pillow and libtiff, and report them at the end.

    Printed, they would break up the progress line, once per file.
    """
    counts: Counter[str] = Counter()
    shown = warnings.showwarning

    def count(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if f"{os.sep}PIL{os.sep}" in filename:
            counts[str(message)] += 1
        else:
            shown(message, category, filename, lineno, file, line)

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", module=r"PIL\.")
            warnings.showwarning = count
            yield
    finally:
        if decode := sys.modules.get("vit21k.data.decode"):
            counts.update(decode.MESSAGES)
        _report_decoder_messages(counts)


def _report_decoder_messages(counts: Counter[str]) -> None:
    kinds: Counter[str] = Counter()
    for message, count in counts.items():
        kinds[_NUMBER.sub("N", message.strip())] += count
    if kinds:
        often = "; ".join(f"{count:,} x `{one_line(kind)}`" for kind, count in kinds.most_common(3))
        more = f"; and {len(kinds) - 3} more kinds" if len(kinds) > 3 else ""
        note(f"image decoder: {kinds.total():,} messages on unusual files: {often}{more}")


def done(message: str) -> None:
    """Report a finished step (stderr)."""
    err.print(_safe(message), markup=False)


def note(message: str) -> None:
    """Print additional information (stderr)."""
    err.print(_safe(message), markup=False, style="dim")


def warn(message: str) -> None:
    """Print a warning (stderr)."""
    err.print(Text.assemble(("warning: ", "yellow"), _safe(message)))


def fail(error: Vit21kError) -> None:
    """Print an expected error and its hint (stderr)."""
    fail_with(error.message, error.hint)


def fail_with(message: str, hint: str | None = None) -> None:
    """Print an error and, after a blank line, a hint (stderr)."""
    err.print(Text.assemble(("error: ", "red"), _safe(message)))
    if hint:
        err.print()
        err.print(Text.assemble(("hint: ", "cyan"), _safe(hint)))


def print_json(value: Any) -> None:
    """Print one JSON value (stdout)."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def print_lines(text: str) -> None:
    """Print text unchanged (stdout)."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Print a table without borders (stdout); numbers are right-aligned.

    Rows are folded to the width of a terminal; otherwise each is one line, for `grep`.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    if not out.is_terminal:
        out.width = _ENDLESS
    out.print(table, soft_wrap=False)


def print_facts(facts: Mapping[str, Any], indent: str = "") -> None:
    """Print one fact per line (stdout); the items of a mapping below its name."""
    for name, value in facts.items():
        words = str(name).removeprefix("num_").replace("_", " ")
        if isinstance(value, Mapping):
            print_lines(f"{indent}{words}:")
            print_facts(value, indent + "  ")
        else:
            shown = f"{value:,}" if type(value) in (int, float) else str(value)
            print_lines(f"{indent}{words:<{44 - len(indent)}}{shown}")


def _is_number(cell: str) -> bool:
    return (
        cell.replace(",", "").replace(".", "").replace("%", "").replace("-", "").strip().isdigit()
    )


class ProgressLine:
    """Progress of a step: a line that is updated on a terminal, a line every 10 s elsewhere.

    Attributes:
        num_done: Units done so far.
        num_bytes: Bytes read so far.
        num_problems: Problems so far.
        total: Number of units, once known.
        fraction: Fraction done, 0 to 1, if *total* is not known.
    """

    def __init__(self, title: str, unit: str, total: int | None = None) -> None:
        self.num_done = 0
        self.num_bytes = 0
        self.num_problems = 0
        self.total = total
        self.fraction: float | None = None
        self._title = title
        self._unit = unit
        self._started_at: float | None = None
        self._shown_at = 0.0
        self._moving = err.is_terminal and os.environ.get("TERM") != "dumb"

    def advance(
        self,
        num_done: int = 1,
        *,
        num_bytes: int = 0,
        num_problems: int = 0,
        fraction: float | None = None,
    ) -> None:
        """Count, and show the line if it is due; the first call starts the clock."""
        now = time.monotonic()
        if self._started_at is None:
            self._started_at = self._shown_at = now
        self.fraction = fraction
        self.num_done += num_done
        self.num_bytes += num_bytes
        self.num_problems += num_problems
        if now - self._shown_at >= (_BAR_SECONDS if self._moving else _PLAIN_LINE_SECONDS):
            self._shown_at = now
            self._show(now - self._started_at)

    def clear(self) -> None:
        """Remove the line from the terminal."""
        if self._moving:
            err.file.write("\r\x1b[2K")
            err.file.flush()

    def _show(self, seconds: float) -> None:
        line = self.line(seconds)
        if self._moving:
            err.file.write("\r\x1b[2K" + line[: err.width - 1])
            err.file.flush()
        else:
            err.print(line, markup=False)

    def line(self, seconds: float) -> str:
        """Return the line after *seconds*: done, rates, ETA, problems."""
        rate = self.num_done / max(seconds, 1e-9)
        parts = [f"{self._title}: {self.num_done:,}"]
        if self.total:
            parts[0] += f" of {self.total:,} ({100 * self.num_done / self.total:.1f} %)"
        parts[0] += f" {self._unit}"
        if self.fraction:
            parts[0] += f" (about {100 * self.fraction:.1f} %)"
        parts.append(f"{rate:,.0f} {self._unit}/s")
        if self.num_bytes:
            parts.append(f"{self.num_bytes / max(seconds, 1e-9) / 1e6:,.0f} MB/s")
        if self.total and rate:
            parts.append(f"ETA {duration((self.total - self.num_done) / rate)}")
        if self.fraction:
            parts.append(f"ETA {duration(seconds * (1 / self.fraction - 1))}")
        if self.num_problems:
            parts.append(f"{self.num_problems:,} problems")
        return " | ".join(parts)


@contextmanager
def progress(
    title: str, *, unit: str = "files", total: int | None = None
) -> Iterator[ProgressLine]:
    """Yield a progress line that is removed when the block ends."""
    line = ProgressLine(title, unit, total)
    try:
        yield line
    finally:
        line.clear()


def counts(by_kind: Mapping[Any, int]) -> dict[str, int]:
    """Return counts by kind for JSON, in order."""
    return {str(kind): count for kind, count in sorted(by_kind.items())}


def number(value: float | None) -> str:
    """Return a count with separators, a fraction with four digits; "-" for None."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def size(num_bytes: int) -> str:
    """Return a number of bytes in MB or GB."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """Return *seconds* in words: ``41 s``, ``12 min 05 s``, ``3 h 20 min``, ``11.4 d``."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    if round(seconds) < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02} s"
    if seconds < 86_400:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes:02} min"
    if seconds < 365 * 86_400:
        return f"{seconds / 86_400:.1f} d"
    return f"{seconds / 365 / 86_400:,.1f} y"


def some(names: Sequence[str], limit: int = 10) -> str:
    """Return the first of *names*, and how many more there are."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(f"`{name}`" for name in names[:limit]) + more
