"""Names of archives: tars, zips, compressed and multi-part tars, and what is not read."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

_SUFFIXES = (b".tar", b".tar.gz", b".tgz", b".zip")

_PART = re.compile(
    rb"(?P<whole>.+\.(?:tar\.gz|tar|tgz))[._-]?(?:part[._-]?)?(?P<index>[a-z]{2,8}|\d{1,8})",
    re.IGNORECASE,
)
_LETTERS, _DIGITS = b"abcdefghijklmnopqrstuvwxyz", b"0123456789"
_USUAL_LENGTH = 2  # of letters; with more, a name may end in another suffix

_UNPACK = {
    b"7z": "7z x {name}",
    b"rar": "unrar x {name}",
    b"tar.bz2|tbz2?": "bunzip2 -k {name}",
    b"tar.xz|txz": "xz -dk {name}",
    b"tar.zst|tzst": "zstd -d {name}",
    b"tar.lz4": "lz4 -d {name}",
    b"tar.lzma|tlz": "unlzma -k {name}",
    b"tar.Z|taz": "uncompress -k {name}",
}
_UNREAD = [
    (re.compile(rb".+\.(%b)" % suffixes.replace(b".", rb"\."), re.IGNORECASE), command)
    for suffixes, command in _UNPACK.items()
]
_VOLUME = re.compile(rb"(?P<whole>.+\.(zip|7z|rar))\.\d{2,}", re.IGNORECASE)
_SPLIT_ZIP = re.compile(rb"(?P<stem>.+)\.z\d{2,}", re.IGNORECASE)


def archive_stem(name: bytes) -> bytes | None:
    """Return *name* without its suffix; None if it is not that of an archive that is read.

    Of a multi-part tar, the first part has the name of the archive.
    """
    lower = name.lower()
    if lower.endswith(_SUFFIXES):
        stems = (name[: -len(suffix)] for suffix in _SUFFIXES if lower.endswith(suffix))
        return next(stems) or None
    if b".tar" not in lower and b".tgz" not in lower:  # nearly all: it is asked of each member
        return None
    part = _part(name)
    return archive_stem(part["whole"]) if part and _is_first(part["index"]) else None


def is_first_part(name: bytes) -> bool:
    """Return whether a name is that of the first part of a multi-part tar."""
    return archive_stem(name) is not None and not name.lower().endswith(_SUFFIXES)


def _part(name: bytes) -> re.Match[bytes] | None:
    is_whole = name.lower().endswith(_SUFFIXES) or how_to_unpack(name)
    return None if is_whole else _PART.fullmatch(name)


class PartFiles(NamedTuple):
    """The parts of multi-part tars in a folder.

    Attributes:
        of_first: Names of all parts in their order, by that of the first.
        flaws: What is wrong with other parts, by their names.
    """

    of_first: dict[bytes, list[bytes]]
    flaws: dict[bytes, str]


def find_parts(names: Iterable[bytes]) -> PartFiles:
    """Return which of the files of a folder are parts: `a.tar.aa`, `a.tgz.part1`, `a.tar.gz.00`."""
    groups: dict[tuple[bytes, bool], dict[bytes, bytes]] = defaultdict(dict)
    for name in names:
        part = _part(name)
        if part:
            index = part["index"]
            groups[name.removesuffix(index), index.isdigit()][index] = name
    parts = PartFiles({}, {})
    for group in groups.values():
        _add_group(parts, group)
    return parts


def _add_group(parts: PartFiles, group: dict[bytes, bytes]) -> None:
    first = min(filter(_is_first, group), default=None)
    if first is None:
        _note(parts, group, "the first part is missing")
        return
    found = [group.pop(first)]
    index: bytes | None = first
    while index is not None:
        following = _following(index)
        index = next((one for one in following if one in group), None)
        if index is not None:
            found.append(group.pop(index))
    parts.of_first[found[0]] = found
    last = found[-1].decode(errors="backslashreplace")
    _note(parts, group, f"the part after `{last}` is missing")


def _note(parts: PartFiles, group: dict[bytes, bytes], flaw: str) -> None:
    """Note what is wrong with the parts that are left, as far as their names are those of parts."""
    for index, name in group.items():
        if len(index) == _USUAL_LENGTH or index.isdigit():
            parts.flaws[name] = flaw


def _is_first(index: bytes) -> bool:
    return int(index) <= 1 if index.isdigit() else set(index.lower()) == {_LETTERS[0]}


def _following(index: bytes) -> list[bytes]:
    """Return what may come after a part: `ab` after `aa`; after `yz`, `za`, or `zaaa` of split."""
    digits = _DIGITS if index.isdigit() else _LETTERS if index.islower() else _LETTERS.upper()
    rest = index.rstrip(digits[-1:])
    num_last = len(index) - len(rest)
    if not rest:
        return [digits[1:2] + digits[:1] * num_last] if index.isdigit() else []
    step = digits[digits.index(rest[-1:]) + 1 :][:1]
    following = [rest[:-1] + step + digits[:1] * num_last]
    if rest == digits[-2:-1]:
        following.append(digits[-1:] + digits[:1] * (len(index) + 1))
    return following


def is_gzip_name(name: bytes) -> bool:
    """Return whether a file's name says that it is compressed."""
    part = _part(name)
    return (part["whole"] if part else name).lower().endswith((b".gz", b".tgz"))


def is_zip_name(name: bytes) -> bool:
    """Return whether a file's name says that it is a zip."""
    return name[-4:].lower() == b".zip"


def how_to_unpack(name: bytes) -> str | None:
    """Return what to do with an archive that is not read, by its name; None for other files."""
    text = name.decode(errors="backslashreplace")
    if found := _VOLUME.fullmatch(name):
        whole = found["whole"].decode(errors="backslashreplace")
        return f"join its parts: `cat {whole}.* > {whole}`"
    if found := _SPLIT_ZIP.fullmatch(name):
        stem = found["stem"].decode(errors="backslashreplace")
        return f"join the parts of the zip: `zip -s 0 {stem}.zip --out {stem}-joined.zip`"
    for pattern, command in _UNREAD:
        if pattern.fullmatch(name):
            return f"unpack it: `{command.format(name=text)}`"
    return None
