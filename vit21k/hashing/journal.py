"""A journal on the disk: where the record of each run of names is, and what it says."""

import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vit21k.hashing.records import HEAD, Label, NamedRows, decode, decode_label

_LABEL_BYTES = 512  # read at a time; most labels are shorter


class Record(NamedTuple):
    """Where a record is."""

    label: Label
    descriptor: int
    offset: int

    def content(self) -> bytes:
        """Return the record as it was written."""
        body_bytes, _, _ = HEAD.unpack(os.pread(self.descriptor, HEAD.size, self.offset))
        return os.pread(self.descriptor, HEAD.size + body_bytes, self.offset)

    def files(self) -> NamedRows:
        """Return the files that it tells of; none if it is damaged."""
        whole = self.content()
        _, label_bytes, checksum = HEAD.unpack_from(whole)
        return decode(whole[HEAD.size :], label_bytes, checksum)


Records = dict[bytes, list[Record]]
"""The records of a journal by folder; each folder's in the order of its names."""


def records_of(descriptor: int, offset: int) -> Records:
    """Return where the records of an open journal are, from *offset* on.

    One that a kill cut short, at the end, is none.
    """
    records: Records = {}
    size = os.fstat(descriptor).st_size
    while (found := _label_at(descriptor, offset, size)) is not None:
        label, num_bytes = found
        records.setdefault(label.folder, []).append(Record(label, descriptor, offset))
        offset += num_bytes
    for found_there in records.values():  # threads end their chunks in any order
        found_there.sort()
    return records


def between(records: list[Record], first: bytes, last: bytes) -> Iterator[Record]:
    """Yield those of *records*, of one folder, that hold names from *first* to *last*."""
    place = bisect_left(records, first, key=lambda record: record.label.last)
    while place < len(records) and records[place].label.first <= last:
        yield records[place]
        place += 1


def joined(parts: Sequence[NamedRows]) -> NamedRows:
    """Return the files of all *parts*, each once, by name; what a later part says counts."""
    names = [name for part in parts for name in part.names]
    place_of = {name: place for place, name in enumerate(names)}
    places = [place for _, place in sorted(place_of.items())]
    return NamedRows(sorted(place_of), np.concatenate([part.rows for part in parts])[places])


def _label_at(descriptor: int, offset: int, size: int) -> tuple[Label, int] | None:
    """Return the label of the record at *offset*, and its length; None if there is no whole one."""
    start = os.pread(descriptor, HEAD.size + _LABEL_BYTES, offset)
    if len(start) < HEAD.size:
        return None
    body_bytes, label_bytes, _ = HEAD.unpack_from(start)
    if offset + HEAD.size + body_bytes > size or label_bytes > body_bytes:
        return None
    if label_bytes > _LABEL_BYTES:
        start = os.pread(descriptor, HEAD.size + label_bytes, offset)
    label = decode_label(start[HEAD.size : HEAD.size + label_bytes])
    return (label, HEAD.size + body_bytes) if label else None
