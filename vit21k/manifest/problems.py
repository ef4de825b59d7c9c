"""Why a file was not used: the closed list behind `problems.parquet`."""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple, Self


class ProblemKind(StrEnum):
    """Why a file or a folder of the image tree was not used.

    Attributes:
        doc: One sentence for the user.
        is_skipped: Whether nothing is wrong: such files are listed and counted, but do not change
            the exit code of `vit21k hash`.
    """

    doc: str
    is_skipped: bool

    def __new__(cls, value: str, doc: str, is_skipped: bool = False) -> Self:  # noqa: FBT001, FBT002, RUF100
        """Make a member of the string *value*."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.doc = doc
        member.is_skipped = is_skipped
        return member

    EMPTY = "empty", "The file holds no bytes."
    UNREADABLE = "unreadable", "The system refused to read it; `detail` has its message."
    VANISHED = "vanished", "It was listed, but no longer existed when it was read."
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
        "It is in the image root itself, so it has no class.",
    )
    NOT_A_REGULAR_FILE = "not_a_regular_file", "A pipe, a socket or a device."
    BROKEN_SYMLINK = "broken_symlink", "A symbolic link to a missing file."
    SYMLINK_LOOP = "symlink_loop", "A symbolic link that leads back to itself."
    FOLDER_SEEN_BEFORE = (
        "folder_seen_before",
        "The same folder was already read under the name in `detail`.",
    )
    MEMBER_IS_LINK = (
        "member_is_link",
        "A link inside an archive; it is not followed.",
    )
    MEMBER_NOT_SUPPORTED = (
        "member_not_supported",
        "A member of an archive with unsupported storage, such as a sparse file.",
    )
    MEMBER_TOO_LARGE = "member_too_large", "A member of an archive of more than 256 MiB."
    UNSAFE_NAME = (
        "unsafe_name",
        "A member of an archive whose name is absolute, leads out with `..`, or is no name.",
    )
    DUPLICATE_MEMBER = (
        "duplicate_member",
        "Another member of the archive has its name; the last one was taken, as `tar` does.",
    )
    ARCHIVE_DAMAGED = "archive_damaged", "An archive is malformed; `detail` has the offset."
    ARCHIVE_TRUNCATED = "archive_truncated", "An archive, or its last member, ends too early."
    ARCHIVE_TOO_DEEP = "archive_too_deep", "An archive inside an archive inside an archive."
    ARCHIVE_BOMB = "archive_bomb", "A compressed archive that unpacks to over 100 times its size."
    ARCHIVE_DIFFERS = (
        "archive_differs",
        "The folder, or archive, of its name was read instead, and lacks images of this one.",
    )
    ARCHIVE_NOT_SUPPORTED = (
        "archive_not_supported",
        "An archive in a format that is not read; `detail` says how to unpack it.",
    )
    NOT_AN_IMAGE = "not_an_image", "Its bytes are not of a supported image format."
    TRUNCATED_IMAGE = "truncated_image", "An image whose data end too early."
    DAMAGED_IMAGE = "damaged_image", "An image whose data are malformed."
    TOO_MANY_PIXELS = (
        "too_many_pixels",
        "More than 89,478,485 pixels, or a side that no decoder supports: possibly a bomb.",
    )
    UNSUPPORTED_PIXELS = (
        "unsupported_pixels",
        "Pixels of unknown range: floating-point, signed or 32-bit.",
    )
    TOO_SLOW_TO_DECODE = (
        "too_slow_to_decode",
        "Decoding it would take longer than the budget, or did.",
    )
    TOO_MUCH_MEMORY = (
        "too_much_memory",
        "Decoding it would take more memory than the budget, or did.",
    )
    DECODER_DIED = "decoder_died", "Decoding it ended the decoding process."
    LABEL_MISSING = (
        "label_missing",
        "Its label is missing, malformed, or contradicts another one; `detail` says which.",
    )
    IMAGE_NOT_STORED = (
        "image_not_stored",
        "A row of a Parquet or Arrow file with the path of an image, and not its bytes.",
    )
    FILE_MISSING = "file_missing", "The label file has a label for it, and there is no such image."
    SEVERAL_IMAGES = (
        "several_images",
        "Images of a WebDataset that share a key; `--image-column` selects one of them.",
    )
    SHARD_DIFFERS = (
        "shard_differs",
        "A shard does not hold as many images as `_info.json` lists.",
    )
    UNLABELLED = "unlabelled", "Its label is withheld (-1), as in published test sets.", True
    ALREADY_UNPACKED = (
        "already_unpacked",
        "The folder, or archive, of its name was read instead, and has all images of this one.",
        True,
    )
    OTHER_SUFFIX = "other_suffix", "Its suffix is not that of an image.", True
    HIDDEN = "hidden", "Its name begins with a dot; nothing below a hidden folder is read.", True
    SYMLINK = "symlink", "A symbolic link; `--follow-symlinks` follows it.", True


class Problem(NamedTuple):
    """A row of `problems.parquet`.

    Attributes:
        path: Relative to the image root; that of a folder ends in ``/``.
        kind: What is wrong.
        detail: Message of the system, or details.
    """

    path: str
    kind: ProblemKind
    detail: str


UNREADABLE_IN_FALL11 = frozenset(
    {
        *("n01678043_6448", "n01896844_997", "n02368116_318", "n02428089_710", "n02487347_1956"),
        *("n02597972_5463", "n03957420_30695", "n03957420_33553", "n03957420_8296"),
        *("n04135315_8814", "n04135315_9318", "n04257684_9033", "n04427559_2974"),
        *("n06470073_47249", "n07930062_4147", "n09224725_3995", "n09359803_8155"),
        *("n09620794_5529", "n09789566_3522", "n09894445_7463", "n10175248_583"),
        *("n10316360_4246", "n10368624_12550", "n10585217_8484", "n10721819_1131"),
        *("n12353203_3849", "n12630763_8018"),
    }
)
"""Files of published data sets that are known to be unreadable: names without suffix.

Source: `data/data_fd.py` of SwinTransformer/Feature-Distillation at commit becd8b3 (MIT), which
skips these files of fall11.  20 of the 27 are of classes that winter21 kept; those 20 are the ones
that segme (shkarupa-alex/segme) skips of winter21.
"""


def num_known(paths: Iterable[str]) -> int:
    """Return how many of *paths* are of files known to be unreadable in fall11."""
    stems = {path.rpartition("/")[2].partition(".")[0] for path in paths}
    return len(stems & UNREADABLE_IN_FALL11)


def describe_known(count: int) -> str:
    """Return what *count* known files mean, as a note; "" for none."""
    if not count:
        return ""
    total = len(UNREADABLE_IN_FALL11)
    return f"{count} of {total} known unreadable files of fall11 are among them"
