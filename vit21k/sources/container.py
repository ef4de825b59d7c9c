"""Images in containers (tars, zips, Parquet files): what a reader is given and what it yields.

A reader of a format is a function `read_<format>(source, path, labels)` that yields each image of
one container, or a `Problem`, in the container's order.  It lists malformed content and raises
`OSError` only for input and output; `LayoutError` where the class of an image is ambiguous, which
the user has to settle.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from vit21k.errors import LayoutError
from vit21k.manifest.problems import Problem

UNLABELLED = -1
"""Label of an image whose class is withheld, as in the test splits of Hugging Face datasets."""


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


@dataclass(frozen=True)
class LabelOptions:
    """Where the class of an image comes from, as far as the user says.

    Attributes:
        label_from: `folder` (that an image lies in), `parent` (the one above), `top` (the first
            below the root), `key`, `cls`, `json:FIELD` or `column:NAME`; None: detected.
        class_names: Names in the order of class indices (`--classes`); None if not given.
        image_column: Column of a Parquet file with the images; None: the only one.
    """

    label_from: str | None = None
    class_names: tuple[str, ...] | None = None
    image_column: str | None = None

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
                hint="give the class names in the order of the indices: `--classes LIST`",
            )
        if not 0 <= index < len(self.class_names):
            raise LayoutError(
                f"class index {index} in `{container}` is not in the class list, which has "
                f"{len(self.class_names):,} classes",
                hint="give the class list that the labels were made with: `--classes LIST`",
            )
        return self.class_names[index]


class ContainerImage(NamedTuple):
    """An image in a container.

    Attributes:
        path: Relative to the root: path of the container, `/`, name inside; unique.
        label: Class name; None: unlabelled.
        offset: Of its bytes in the container; as `storage` defines it.
        num_bytes: Size of the image.
        storage: None: stored as it is; `deflate`, `gzip`, `parquet:COLUMN` as in the schema.
        content: Its bytes; valid until the next item is asked for.
        split: Published split: `train`, `validation`, `test`; None if there is none.
    """

    path: str
    label: str | None
    offset: int
    num_bytes: int
    storage: str | None
    content: memoryview | bytes
    split: str | None = None


ContainerItems = Iterator[ContainerImage | Problem]
"""What a reader yields."""
