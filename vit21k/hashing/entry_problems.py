"""What is wrong with an entry of an image tree: by its name, or by what opening it gave."""

import errno
from collections.abc import Mapping

from vit21k.data.unread import OUR_OWN_LIMITS
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.one_line import printable

IMAGE_SUFFIXES = frozenset(
    {b".jpeg", b".jpg", b".png", b".webp", b".bmp", b".gif", b".tif", b".tiff"}
)
"""Compared in lower case: ImageNet's own files end in `.JPEG`."""

_USUAL_ENDS = (b".JPEG\0", b".jpg\0", b".jpeg\0", b".JPG\0", b".png\0")

Oddities = Mapping[bytes, tuple[ProblemKind, str]]
"""What is wrong with entries of a folder that are neither folders nor regular files, by name."""


def are_usual(names: list[bytes]) -> bool:
    """Return whether nothing can be wrong with the *names* of regular files; quickly."""
    text = b"\0%b\0" % b"\0".join(names)
    num_images = sum(text.count(end) for end in _USUAL_ENDS)
    return num_images == len(names) and text.isascii() and b"\0." not in text


def problem_of(folder: bytes, name: bytes, odd: Oddities) -> Problem | None:
    """Return what is wrong with the entry *name* of *folder* before it is opened.

    Args:
        folder: Relative to the root, with a ``/`` at the end; empty for the root itself.
        name: Of no folder.
        odd: Of this folder.
    """
    detail = ""
    if name.startswith(b"."):
        kind = ProblemKind.HIDDEN
    elif name in odd:
        kind, detail = odd[name]
    elif not is_image_name(name):
        kind = ProblemKind.OTHER_SUFFIX
    elif not is_utf8(folder) or not is_utf8(name):
        kind = ProblemKind.NAME_NOT_UTF8
    elif not folder:
        kind = ProblemKind.NOT_IN_CLASS_FOLDER
    else:
        return None
    return Problem(printable(folder + name), kind, detail)


_KIND_OF_ERRNO = {
    errno.ENOENT: ProblemKind.VANISHED,
    errno.ENOTDIR: ProblemKind.VANISHED,
    errno.ESTALE: ProblemKind.VANISHED,
    errno.ELOOP: ProblemKind.CHANGED_WHILE_READ,  # O_NOFOLLOW: a link has taken its place
    errno.ENXIO: ProblemKind.NOT_A_REGULAR_FILE,  # a socket
}


def problem_from(path: bytes, error: OSError) -> Problem:
    """Return the problem that *error* is, met at *path*.

    Raises:
        OSError: *error* itself, where it says nothing of the file: this process has run out of
            file descriptors or memory.
    """
    if error.errno in OUR_OWN_LIMITS:
        raise error
    kind = _KIND_OF_ERRNO.get(error.errno or 0, ProblemKind.UNREADABLE)
    return Problem(printable(path), kind, error.strerror or str(error))


def is_image_name(name: bytes) -> bool:
    """Return whether a file of that name may be an image."""
    return name[name.rfind(b".") :].lower() in IMAGE_SUFFIXES


def is_utf8(name: bytes) -> bool:
    """Return whether *name* is UTF-8."""
    if name.isascii():
        return True
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
