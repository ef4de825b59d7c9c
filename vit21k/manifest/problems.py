"""Why a file was not used: the closed list behind `problems.parquet`."""

from enum import StrEnum
from typing import NamedTuple, Self


class ProblemKind(StrEnum):
    """Why a file or a folder of the image tree was not used.

    Attributes:
        doc: One sentence for the user.
        is_left_out: True where nothing is wrong: such files are listed and counted, but they do
            not change the exit code of `vit21k hash`.
    """

    doc: str
    is_left_out: bool

    def __new__(cls, value: str, doc: str, is_left_out: bool = False) -> Self:  # noqa: FBT001, FBT002, RUF100
        """Make a member of the string *value*."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.doc = doc
        member.is_left_out = is_left_out
        return member

    EMPTY = "empty", "The file holds no bytes."
    UNREADABLE = "unreadable", "The system refused to read it; `detail` has its words."
    VANISHED = "vanished", "It was listed, and gone when it was to be read."
    CHANGED_WHILE_READ = (
        "changed_while_read",
        "Its size or times changed while it was read, and again when it was read anew.",
    )
    NAME_NOT_UTF8 = (
        "name_not_utf8",
        "Its name, or that of a folder above it, is not UTF-8; rename it.",
    )
    NOT_IN_CLASS_FOLDER = (
        "not_in_class_folder",
        "It lies in the image root itself, so it has no class.",
    )
    NOT_A_REGULAR_FILE = "not_a_regular_file", "A pipe, a socket or a device."
    BROKEN_SYMLINK = "broken_symlink", "A symbolic link to what is not there."
    SYMLINK_LOOP = "symlink_loop", "A symbolic link that leads back to itself."
    FOLDER_SEEN_BEFORE = (
        "folder_seen_before",
        "The same folder was already read under the name in `detail`.",
    )
    OTHER_SUFFIX = "other_suffix", "Its name does not end like that of an image.", True
    HIDDEN = "hidden", "Its name begins with a dot; nothing below a hidden folder is read.", True
    SYMLINK = "symlink", "A symbolic link; `--follow-symlinks` reads what it leads to.", True


class Problem(NamedTuple):
    """A row of `problems.parquet`.

    Attributes:
        path: Relative to the image root; that of a folder ends in ``/``.
        kind: What is wrong.
        detail: What the system said, or what was found.
    """

    path: str
    kind: ProblemKind
    detail: str
