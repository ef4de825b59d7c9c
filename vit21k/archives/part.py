"""What can be read by itself: an archive, or a class tar in one."""

from typing import NamedTuple


class ArchivePart(NamedTuple):
    """An archive, or a class tar in it.

    Attributes:
        archive: Path relative to the image root.
        name: That of the class tar, as if its archive had been unpacked; or *archive*.
        folder: What the part would be unpacked to: relative to the root, ends in ``/``; empty for
            the root itself.
        start: Where it begins in the archive.
        end: Where it ends; None for a whole archive.
        beside: What is read instead of it, for it has its name: a folder, which ends in ``/``, or
            another archive; empty if there is nothing of the kind.
    """

    archive: bytes
    name: bytes
    folder: bytes
    start: int = 0
    end: int | None = None
    beside: bytes = b""

    @property
    def is_whole(self) -> bool:
        """Whether it is an archive of its own, in which class tars may lie."""
        return self.end is None
