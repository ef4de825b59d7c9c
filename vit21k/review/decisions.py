"""decisions.jsonl: what a person decided, a line for each decision, appended and synced at once.

Nothing is ever rewritten: undoing appends a line too.  A line that a crash cut short was never
acknowledged; it is ignored, and taken off before the next one is appended.
"""

import fcntl
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from vit21k.errors import DataError, LockedError

FILE_NAME = "decisions.jsonl"


class ItemKind(StrEnum):
    """What is decided on."""

    MERGE = "merge"
    LEAK = "leak"
    NEAR = "near"


class Action(StrEnum):
    """What is decided."""

    ACCEPT = "accept"
    REJECT = "reject"
    DROP = "drop"
    SPLIT = "split"  # of earlier versions: read, never applied, as a row is one digest
    UNDO = "undo"


ACTIONS = {
    ItemKind.MERGE: (Action.ACCEPT, Action.DROP),
    ItemKind.LEAK: (Action.ACCEPT, Action.REJECT),
    ItemKind.NEAR: (Action.ACCEPT, Action.REJECT),
}
"""What can be decided on each kind of item, beside `Action.UNDO`."""

_READABLE = {**ACTIONS, ItemKind.MERGE: (*ACTIONS[ItemKind.MERGE], Action.SPLIT)}

Key = tuple[str, str, str]
"""Names an item: its kind and its paths."""


def item_key(kind: ItemKind | None, path: str, other_path: str) -> Key:
    """Return what names an item; near-duplicates have no first and second."""
    if kind is ItemKind.NEAR:
        path, other_path = sorted((path, other_path))
    return str(kind), path, other_path


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A line of the file.

    Attributes:
        kind: What is decided on; None to undo.
        action: What is decided.  `UNDO` takes back the last decision that still stands.
        path: The kept file of the image.
        digest: Of its bytes, in hexadecimal, where known.
        other_path: The other image of a pair.
        wnid: The label to drop.
    """

    action: Action
    kind: ItemKind | None = None
    path: str = ""
    digest: str = ""
    other_path: str = ""
    wnid: str = ""

    @property
    def item(self) -> Key:
        """What it is about."""
        return item_key(self.kind, self.path, self.other_path)

    def to_line(self) -> bytes:
        """Return it as a line."""
        fields = {name: value for name, value in asdict(self).items() if value}
        return json.dumps(fields, sort_keys=True, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Return what `to_line` wrote.

        Raises:
            ValueError: It did not write that.
        """
        fields = json.loads(line)
        if not isinstance(fields, dict) or not all(isinstance(v, str) for v in fields.values()):
            raise ValueError("not an object of strings")
        kind = ItemKind(fields.pop("kind")) if "kind" in fields else None
        action = Action(fields.pop("action", ""))
        if (action is Action.UNDO) != (kind is None):
            raise ValueError("an item is missing, or too many")
        if kind and action not in _READABLE[kind]:
            raise ValueError(f"a {kind} cannot be decided by {action}")
        try:
            return cls(action=action, kind=kind, **fields)
        except TypeError as error:
            raise ValueError(str(error)) from error


def not_undone(decisions: Iterable[Decision]) -> list[Decision]:
    """Return the decisions that were not undone, in order."""
    left: list[Decision] = []
    for decision in decisions:
        if decision.action is not Action.UNDO:
            left.append(decision)
        elif left:
            left.pop()
    return left


def by_item(decisions: Iterable[Decision]) -> dict[Key, list[Decision]]:
    """Return what counts for each item: its last decision that was not undone.

    Labels are dropped one by one, so that the drops since the last other decision all count, each
    label once.  Items are in the order of their last decisions.
    """
    found: dict[Key, list[Decision]] = {}
    for decision in not_undone(decisions):
        earlier = found.pop(decision.item, [])
        if decision.action is Action.DROP:
            kept = [one for one in earlier if one.action is Action.DROP]
            earlier = [one for one in kept if one.wnid != decision.wnid]
        else:
            earlier = []
        found[decision.item] = [*earlier, decision]
    return found


def standing(decisions: Iterable[Decision]) -> list[Decision]:
    """Return all decisions that count, item by item."""
    return [one for of_item in by_item(decisions).values() for one in of_item]


def read_decisions(path: Path) -> list[Decision]:
    """Read all lines, `UNDO` included; a last line that was cut short is ignored.

    Raises:
        DataError: Another line is damaged, or there is no such file.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"no decisions at `{path}`", hint="make some with `vit21k review`"
        ) from None
    decisions = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            decisions.append(Decision.from_line(line))
        except ValueError as error:
            raise DataError(
                f"line {number} of `{path}` is not a decision: {error}",
                hint="take the line out, or restore the file from a copy",
            ) from error
    return decisions


class DecisionLog:
    """The file, open for one process; any thread may add to it.

    Attributes:
        by_item: The decisions that count, by item.
    """

    def __init__(self, path: Path) -> None:
        """Open *path*, made if need be.

        Raises:
            LockedError: Another process has it open.
            DataError: A line is damaged.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._cut_half_line()
            self._take(read_decisions(path))
        except BlockingIOError:
            self._file.close()
            raise LockedError(
                f"`{path}` is in use by another `vit21k review`", hint="end that one first"
            ) from None
        except BaseException:
            self._file.close()
            raise
        self._mutex = threading.Lock()

    @property
    def standing(self) -> list[Decision]:
        """The decisions that count, item by item."""
        return [one for of_item in self.by_item.values() for one in of_item]

    def add(self, decision: Decision) -> None:
        """Append a decision, unless it counts already; it is on disk when this returns.

        Raises:
            OSError: The disk is full or failing; the decision does not count.
        """
        with self._mutex:
            if decision not in self.by_item.get(decision.item, []):
                self._append(decision)

    def undo(self) -> Decision | None:
        """Take the last decision back that still stands, and return it; None if none does.

        Raises:
            OSError: The disk is full or failing; it still stands.
        """
        with self._mutex:
            if not self._not_undone:
                return None
            last = self._not_undone[-1]
            self._append(Decision(action=Action.UNDO))
            return last

    def counts(self) -> Counter[str]:
        """Return how many items of each kind are decided."""
        return Counter(kind for kind, _, _ in self.by_item)

    def _append(self, decision: Decision) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            self._write(decision.to_line())
        except OSError:
            os.ftruncate(self._file.fileno(), size)
            raise
        self._take([*self._not_undone, decision])

    def _take(self, decisions: list[Decision]) -> None:
        self._not_undone = not_undone(decisions)
        self.by_item = by_item(self._not_undone)

    def close(self) -> None:
        """Let others open it."""
        self._file.close()

    def _write(self, line: bytes) -> None:
        view = memoryview(line)
        while view:
            view = view[self._file.write(view) or 0 :]
        os.fsync(self._file.fileno())

    def _cut_half_line(self) -> None:
        self._file.seek(0)
        content = self._file.readall()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            os.ftruncate(self._file.fileno(), whole)
            os.fsync(self._file.fileno())
