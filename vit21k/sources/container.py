"""Images in containers (tars, zips, Parquet files): what a reader is given and what it yields.

A reader of a format is a function `read_<format>(source, path, labels)` that yields each image of
one container, or a `Problem`, in the container's order.  It lists malformed content and raises
`OSError` only for input and output; `LayoutError` where the class of an image is ambiguous, which
the user has to settle.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from vit21k.errors import LayoutError, UsageError
from vit21k.manifest.layout import SPLIT_OF, split_named
from vit21k.manifest.problems import Problem

UNLABELLED = -1
"""Label of an image whose class is withheld, as in the test splits of Hugging Face datasets."""


PARQUET = "parquet:"
"""`storage` of an image that is located by its row in a Parquet file, before its column's name."""


class ByteSource(Protocol):
    """A seekable binary file, local or behind a URL: `open(path, "rb")` or fsspec's `open`."""

    @property
    def name(self) -> str:
        """Path or URL, for messages."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to *size* bytes."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Read into *buffer*; return the number of bytes, 0 at the end."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to *offset*; return the new position."""

    def tell(self) -> int:
        """Return the position."""

    def close(self) -> None:
        """Close the file."""


class Entry(Protocol):
    """An entry of a folder of a source."""

    @property
    def name(self) -> str:
        """Its name in the folder."""

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""


class SourceTree(Protocol):
    """Folders and files that are hashed, on a disk or behind a URL; never written to."""

    def entries(self, folder: str = "") -> Sequence[Entry]:
        """Return what is in *folder*, relative to the root."""

    def open(self, path: str) -> ByteSource:
        """Open the file *path*, relative to the root, for reading."""


TAR = "tar"


class ContainerRange(NamedTuple):
    """A container, or the bytes of a class tar in it.

    Attributes:
        path: Of the container, relative to the image root.
        name: Path of the class tar if the container were unpacked; or *path*.
        folder: What it would be unpacked to: relative to the root, ends in `/`; empty for the root.
        start: Offset of the first byte in the container.
        end: Offset after the last byte; None for a complete container.
        superseded_by: What is read instead, with the same name: a folder, which ends in
            `/`, or another container; empty if there is none.
        kind: `TAR`: it is read as if it were unpacked; others as in `detect.SourceLayout.read`.
    """

    path: bytes
    name: bytes
    folder: bytes
    start: int = 0
    end: int | None = None
    superseded_by: bytes = b""
    kind: str = TAR

    @property
    def is_class_tar(self) -> bool:
        """Whether it is a class tar in a container."""
        return self.end is not None


@dataclass(frozen=True)
class LabelOptions:
    """Where the class of an image comes from, as far as the user says.

    Attributes:
        label_from: `folder` (that contains an image), `parent` (the one above), `top` (the first
            below the root), `key`, `cls`, `json:FIELD` or `column:NAME`; None: detected.
        class_names: Names in the order of class indices (`--classes`); None if not given.
        image_column: Column of a Parquet file, or suffix in a WebDataset, of the images; None: the
            only one.
        is_detected: `label_from` was detected: other labels that contradict it are listed.
        are_classes_given: `class_names` are from the user, not from the source.
    """

    label_from: str | None = None
    class_names: tuple[str, ...] | None = None
    image_column: str | None = None
    is_detected: bool = False
    are_classes_given: bool = False

    def name_of_index(self, index: int, container: str) -> str | None:
        """Return the name of class *index*; None for `UNLABELLED`.

        Args:
            index: As stored in the container.
            container: Path, for messages.

        Raises:
            LayoutError: There is no class list, or it is too short.
        """
        if index == UNLABELLED:
            return None
        if self.class_names is None:
            raise LayoutError(
                f"the labels in `{container}` are class indices ({index}) without class names",
                hint="`vit21k hash --classes LIST` gives the names in the order of the indices",
            )
        if not 0 <= index < len(self.class_names):
            raise LayoutError(
                f"class index {index} in `{container}` is not in the class list, which has "
                f"{len(self.class_names):,} classes",
                hint="`vit21k hash --classes LIST` takes the list that the labels were made with",
            )
        return self.class_names[index]


NO_OPTIONS = LabelOptions()
"""The user says nothing of labels."""


_NAMED_KINDS = frozenset({"json", "column"})
LABEL_KINDS = frozenset({"folder", "parent", "top", "key", "cls"}) | _NAMED_KINDS
"""Kinds of `LabelOptions.label_from`."""


def label_options(
    label_from: str | None, class_names: Sequence[str] | None, image_column: str | None
) -> LabelOptions:
    """Return the options about labels.

    Raises:
        UsageError: *label_from* is malformed.
    """
    kind, colon, name = ("folder" if label_from is None else label_from).partition(":")
    if kind not in LABEL_KINDS or bool(name) != (kind in _NAMED_KINDS) or bool(colon) != bool(name):
        raise UsageError(
            f"`--label-from {label_from}` is malformed",
            hint="use folder, parent, top, key, cls, json:FIELD or column:NAME",
        )
    names = None if class_names is None else tuple(class_names)
    return LabelOptions(label_from, names, image_column, are_classes_given=names is not None)


class ContainerImage(NamedTuple):
    """An image in a container.

    Attributes:
        path: Relative to the root: path of the container, `/`, name inside; unique.
        label: Class name; several are one row each; None: unlabelled, which is listed.
        offset: Of its bytes in the container; as `storage` defines it.
        num_bytes: Size of the image.
        storage: None: stored as it is; `deflate`, `gzip`, `parquet:COLUMN` as in the schema.
        content: Its bytes; valid until the next item is asked for.
        split: Published split: `train`, `validation`, `test`; None if there is none.
    """

    path: str
    label: str | tuple[str, ...] | None
    offset: int
    num_bytes: int
    storage: str | None
    content: memoryview | bytes
    split: str | None = None


_PARTIAL = "partial-"  # of a split that the hub has converted only the beginning of
_MAX_CLASS_NAME = 1000


def split_of(path: str) -> str | None:
    """Return the published split of the container or folder at *path*: `train`, `validation`, ...

    A folder counts if its whole name is that of a split, the topmost first; a container if a word
    of its name is (`train-00000-of-00002.parquet`), and only one.

    Args:
        path: Relative to the root; that of a folder ends in `/`.
    """
    *folders, name = path.lower().split("/")
    for folder in folders:
        if (whole := folder.removeprefix(_PARTIAL)) in SPLIT_OF:
            return SPLIT_OF[whole]
    return split_named(name)


def flaw_of_class_name(name: str) -> str | None:
    """Return why a text that a container stores cannot be the name of a class; None if it can."""
    if not name.strip():
        return "an empty class name"
    if len(name) > _MAX_CLASS_NAME or not name.isprintable():
        return f"{name[:40]!r} is no class name"
    return None


ReadAt = Callable[[int, int], bytes]
"""(number of bytes, offset) -> bytes of a file, fewer where it ends."""

ContainerItem = ContainerImage | Problem
ContainerItems = Iterator[ContainerItem]
"""What a reader yields."""
