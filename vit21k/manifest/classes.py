"""Class lists: the wnids of classes 0, 1, 2, ..."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vit21k.errors import ManifestError

CLASSES_OPTION = "source_classes"
"""Option of the header of `digests`: the class list of the source, in its order, if it has one."""

_WNID_THEN_NAME = re.compile(r"(n\d{8})\s+(\S.*)")


@dataclass(frozen=True)
class ClassList:
    """Class folders in class-index order.

    "ImageNet-21K" names at least three lists that differ by one or two classes (21,841, 21,842 and
    21,843), so a count never identifies one; the *fingerprint* does.  It is stored in every
    manifest and checkpoint, and compared.

    Attributes:
        wnids: Names of the class folders: wnids in ImageNet, but any folder name works.
        names: The classes in words, where known; same length.
    """

    wnids: tuple[str, ...]
    names: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            object.__setattr__(self, "names", (None,) * len(self.wnids))
        if len(self.names) != len(self.wnids):
            raise ValueError(f"{len(self.names)} names for {len(self.wnids)} classes")
        if repeated := _first_repeat(self.wnids):
            raise ManifestError(f"`{repeated}` occurs twice in the class list")

    @classmethod
    def from_folders(cls, folders: Iterable[str]) -> Self:
        """Build the canonical list: the distinct folder names in ascending order."""
        return cls(tuple(sorted(set(folders))))

    @classmethod
    def read_text(cls, path: Path) -> Self:
        """Read one class per line: ``folder``, ``folder<TAB>name`` or ``n01440764 name``; or JSON.

        Blank lines are skipped.  The order of the lines is the order of the class indices.  JSON
        states the indices: ``{"0": ["n01440764", "tench"]}``, ``{"n01440764": 0}``, or an array.

        Raises:
            ManifestError: No such file, not text, empty, a folder named twice, or no list.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise ManifestError(f"no class list at `{path}`") from None
        except (UnicodeDecodeError, IsADirectoryError):
            raise ManifestError(
                f"`{path}` is not a text file", hint="write one class folder per line"
            ) from None
        if text.lstrip()[:1] in ("{", "["):
            entries = _parse_json(text, path)
        else:
            entries = [_parse_line(line) for line in text.split("\n") if line.strip()]
        if not entries:
            raise ManifestError(f"the class list `{path}` is empty")
        if (wrong := next((name for name, _ in entries if not _is_folder(name)), None)) is not None:
            raise ManifestError(
                f"`{path}` is not a class list: {wrong[:80]!r} is not the name of a folder",
                hint="write one class folder per line, in the order of the class indices",
            )
        return cls(tuple(wnid for wnid, _ in entries), tuple(name for _, name in entries))

    def __len__(self) -> int:
        return len(self.wnids)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the ordered wnids, as 64 hex digits."""
        return hashlib.sha256("\n".join(self.wnids).encode()).hexdigest()


def _parse_line(line: str) -> tuple[str, str | None]:
    wnid, tab, name = line.rstrip("\r\n").partition("\t")
    if tab:
        return wnid.strip(), name.strip() or None
    if match := _WNID_THEN_NAME.fullmatch(line.strip()):
        return match[1], match[2].strip()
    return line.strip(), None


def _is_folder(name: str) -> bool:
    return name not in ("", ".", "..") and not any(char < " " or char == "/" for char in name)


def _parse_json(text: str, path: Path) -> list[tuple[str, str | None]]:
    """Return folder and name of each class, by class index."""
    try:
        found = json.loads(text)
        if isinstance(found, dict) and all(type(index) is int for index in found.values()):
            found = {str(index): name for name, index in _without_repeats(found).items()}
        if isinstance(found, dict):
            found = [found.pop(str(index)) for index in range(len(found))]
        entries = [_json_entry(entry) for entry in found]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ManifestError(
            f"`{path}` is not a class list: JSON of another form",
            hint='write `{"0": ["n01440764", "tench"], "1": ...}`, `{"n01440764": 0, ...}` or an '
            "array of class folders",
        ) from None
    return entries


def _without_repeats(index_of: dict[str, int]) -> dict[str, int]:
    if len(set(index_of.values())) < len(index_of):
        raise ValueError("a class index comes twice")
    return index_of


def _json_entry(entry: object) -> tuple[str, str | None]:
    if isinstance(entry, str):
        return entry.strip(), None
    if isinstance(entry, list) and list(map(type, entry)) == [str, str]:
        return entry[0].strip(), entry[1].strip() or None
    raise TypeError


def _first_repeat(wnids: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for wnid in wnids:
        if wnid in seen:
            return wnid
        seen.add(wnid)
    return None
