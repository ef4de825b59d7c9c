"""decisions.jsonl: a line for each decision of a person, appended and synced immediately.

Lines are never rewritten: undoing appends a line too.  A partial last line, after a crash, was
never acknowledged; it is ignored, and removed before the next one is appended.
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
    """Kind of item."""

    MERGE = "merge"
    LEAK = "leak"
    NEAR = "near"


class Action(StrEnum):
    """A decision on an item."""

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
"""Possible decisions on each kind of item, apart from `Action.UNDO`."""

_READABLE = {**ACTIONS, ItemKind.MERGE: (*ACTIONS[ItemKind.MERGE], Action.SPLIT)}

Key = tuple[str, str, str]
"""Identifies an item: its kind and its paths."""


def item_key(kind: ItemKind | None, path: str, other_path: str) -> Key:
    """Return the key of an item; the paths of near-duplicates are unordered."""
    if kind is ItemKind.NEAR:
        path, other_path = sorted((path, other_path))
    return str(kind), path, other_path


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A line of the file.

    Attributes:
        action: The decision.  `UNDO` undoes the last decision that is in effect.
        kind: Kind of item; None to undo.
        path: The kept file of the image.
        digest: Digest of its bytes, in hexadecimal, if known.
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
        """Key of its item."""
        return item_key(self.kind, self.path, self.other_path)

    def to_line(self) -> bytes:
        """Return the line of the file."""
        fields = {name: value for name, value in asdict(self).items() if value}
        return json.dumps(fields, sort_keys=True, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """Parse a line.

        Raises:
            ValueError: It is not from `to_line`.
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
    """Return the decisions in effect, by item: the last one that was not undone.

    Labels are dropped one by one: all drops since the last other decision are in effect, each
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


def in_effect(decisions: Iterable[Decision]) -> list[Decision]:
    """Return all decisions in effect, item by item."""
    return [one for of_item in by_item(decisions).values() for one in of_item]


def read_decisions(path: Path) -> list[Decision]:
    """Read all lines, including `UNDO`; a partial last line is ignored.

    Raises:
        DataError: Another line is damaged, or the file does not exist.
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
                hint="remove the line, or restore the file from a copy",
            ) from error
    return decisions


class DecisionLog:
    """The file, locked by this process; thread-safe.

    Attributes:
        by_item: The decisions in effect, by item.
    """

    def __init__(self, path: Path) -> None:
        """Open *path*, created if missing.

        Raises:
            LockedError: Another process has it open.
            DataError: A line is damaged.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._remove_partial_line()
            self._take(read_decisions(path))
        except BlockingIOError:
            self._file.close()
            raise LockedError(
                f"`{path}` is in use by another `vit21k review`", hint="stop that one first"
            ) from None
        except BaseException:
            self._file.close()
            raise
        self._mutex = threading.Lock()

    @property
    def in_effect(self) -> list[Decision]:
        """The decisions in effect, item by item."""
        return [one for of_item in self.by_item.values() for one in of_item]

    def add(self, decision: Decision) -> None:
        """Append a decision, unless it is in effect; it is on disk when this returns.

        Raises:
            OSError: The disk is full or failing; the decision is not in effect.
        """
        with self._mutex:
            if decision not in self.by_item.get(decision.item, []):
                self._append(decision)

    def undo(self) -> Decision | None:
        """Undo the last decision in effect, and return it; None if there is none.

        Raises:
            OSError: The disk is full or failing; it is still in effect.
        """
        with self._mutex:
            if not self._not_undone:
                return None
            last = self._not_undone[-1]
            self._append(Decision(action=Action.UNDO))
            return last

    def counts(self) -> Counter[str]:
        """Return the number of decided items of each kind."""
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
        """Close the file and release the lock."""
        self._file.close()

    def _write(self, line: bytes) -> None:
        view = memoryview(line)
        while view:
            view = view[self._file.write(view) or 0 :]
        os.fsync(self._file.fileno())

    def _remove_partial_line(self) -> None:
        self._file.seek(0)
        content = self._file.readall()
        complete = content.rfind(b"\n") + 1
        if complete != len(content):
            os.ftruncate(self._file.fileno(), complete)
            os.fsync(self._file.fileno())
