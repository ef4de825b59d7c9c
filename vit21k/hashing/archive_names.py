"""The name and size of a member -> why it is not read, if it is not."""

from vit21k.archives.members import MAX_MEMBER_BYTES
from vit21k.archives.names import archive_stem, is_gzip_name
from vit21k.hashing.entry_problems import is_image_name
from vit21k.manifest.problems import ProblemKind
from vit21k.one_line import printable


def flaw_of_class_tar(name: bytes) -> tuple[ProblemKind, str] | None:
    """Return what is wrong with a tar in an archive before it is read."""
    if name.startswith(b".") or b"/." in name:
        return ProblemKind.HIDDEN, ""
    if is_gzip_name(printable(name)):
        return ProblemKind.ARCHIVE_TOO_DEEP, "compressed, inside another archive"
    try:
        name.decode()
    except UnicodeDecodeError:
        return ProblemKind.NAME_NOT_UTF8, ""
    return None


def flaw_of_name(path: bytes) -> tuple[ProblemKind, str] | None:
    """Return why a member of an archive cannot be an image of a class, by its path alone."""
    name = path.rpartition(b"/")[2]
    if archive_stem(name) is not None:
        return ProblemKind.ARCHIVE_TOO_DEEP, ""
    if name.startswith(b".") or b"/." in path:
        return ProblemKind.HIDDEN, ""
    if not is_image_name(name):
        return ProblemKind.OTHER_SUFFIX, ""
    try:
        path.decode()
    except UnicodeDecodeError:
        return ProblemKind.NAME_NOT_UTF8, ""
    if b"/" not in path:
        return ProblemKind.NOT_IN_CLASS_FOLDER, ""
    return None


def flaw_of_size(num_bytes: int) -> tuple[ProblemKind, str] | None:
    """Return what is wrong with a regular file of an archive, by its size."""
    if num_bytes > MAX_MEMBER_BYTES:
        return ProblemKind.MEMBER_TOO_LARGE, f"{num_bytes:,} bytes"
    return None if num_bytes else (ProblemKind.EMPTY, "")
