"""Files that cannot be read, as against images that cannot be decoded.

What a decoder refuses will be refused for ever.  What the system does not give (a disk that is not
mounted, EIO, ESTALE) may be there later: it is read again, listed, and never kept as a verdict.
"""

import errno
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from vit21k.errors import ImageError, ImageTreeError

MAX_UNREAD = 100
"""Files in a row that cannot be read, before the tree is considered gone."""

OUR_OWN_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors of the system that say nothing of the file."""

_NUM_READS = 3

T = TypeVar("T")


def read_again(read: Callable[[int], bytes], row: int) -> bytes:
    """Return what *read* gives for *row*; an error of the system is not believed at once.

    Raises:
        ImageError: The file is not there, or an archive is shorter than it was.
        OSError: It cannot be read, again and again.
    """
    for _ in range(_NUM_READS - 1):
        try:
            return read(row)
        except OSError:
            continue
    return read(row)


def why_unread(error: ImageError | OSError) -> str:
    """Return in words why a file cannot be read.

    Raises:
        OSError: *error* itself, where this process has run out of file descriptors or memory.
    """
    if isinstance(error, ImageError):
        return error.message
    if error.errno in OUR_OWN_LIMITS:
        raise error
    return error.strerror or str(error)


def refuse_gone(
    outcomes: Iterable[T], why: Callable[[T], str | None], root: Path, *, is_all: bool = True
) -> Iterator[T]:
    """Yield *outcomes*, unless as many files in a row are unread as no tree loses now and then.

    None of these is yielded before it is clear that the tree is there.

    Args:
        outcomes: One for each file of a tree, in order.
        why: Returns why the file was not read; None if it was.
        root: Of the tree.
        is_all: These are all of its files: it is gone if none of them was read.

    Raises:
        ImageTreeError: The tree is gone.
    """
    unread: list[T] = []
    is_any_read = not is_all
    for outcome in outcomes:
        if why(outcome) is None:
            is_any_read = True
            yield from unread
            unread.clear()
            yield outcome
        else:
            unread.append(outcome)
            if len(unread) == MAX_UNREAD:
                break
    if unread and (len(unread) == MAX_UNREAD or not is_any_read):
        raise ImageTreeError(
            f"{len(unread):,} images in a row could not be read below `{root}`: {why(unread[-1])}",
            hint="mount that disk, or say where the image tree is now with `--root`; if images "
            "were removed, start again at `vit21k hash`",
        )
    yield from unread
