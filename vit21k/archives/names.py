"""Which file names are archives, and where their members are filed: as if each were unpacked.

An archive stands for a folder of its name: `n01440764.tar` for `n01440764/`.  So the paths, classes
and lists of a tree are the same whether its archives were unpacked or not.
"""

import os

GZIP_START = b"\x1f\x8b"

_SUFFIXES = (b".tar", b".tar.gz", b".tgz")


def archive_stem(name: bytes) -> bytes | None:
    """Return *name* without its suffix; None if it is not that of an archive."""
    lower = name.lower()
    for suffix in _SUFFIXES:
        if lower.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return None


def is_gzip_name(name: str) -> bool:
    """Return whether a file's name says that it is compressed."""
    return name.lower().endswith((".gz", ".tgz"))


def is_gzip(descriptor: int) -> bool:
    """Return whether an open file begins like a gzip file."""
    return os.pread(descriptor, len(GZIP_START), 0) == GZIP_START
