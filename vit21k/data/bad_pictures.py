"""What becomes of pictures that cannot be decoded: an error, or counted and named."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from vit21k.errors import ImageError, ImageTreeError

OnBadImage = Literal["fail", "skip", "replace"]

_LEAST_JUDGED = 1000
"""Pictures before which no rate is a rate."""

_NUM_NAMED = 10
"""Bad pictures that an error names."""

_MAX_UNREADABLE = 100
"""Files in a row that cannot be read, before the image tree is taken to be gone."""

_FEW_UNREADABLE = 10
"""The same, where the bad images are too many anyway: what to say of them."""

_LOST_HINT = (
    "check that the disk of the image tree is mounted and may be read, or say where the tree is "
    "now with `--root`"
)


class Reads(NamedTuple):
    """What came of reading some files, one after the other.

    Attributes:
        num_unreadable: Files that could not be opened or read.
        is_any_read: Whether one of them could.
    """

    num_unreadable: int
    is_any_read: bool


class BadPictures:
    """Counts bad pictures, as long as they are tolerated.

    Args:
        on_bad_image: "fail": raise at the first one; else it is noted.
        hint: What to do about a bad picture.
        max_rate: Raise when more of the pictures were bad, and more than that of 1,000.

    Attributes:
        reasons: Why each was bad, by path.
        num: How often one was met.
    """

    def __init__(self, on_bad_image: OnBadImage, *, hint: str, max_rate: float = 1.0) -> None:
        self.reasons: dict[str, str] = {}
        self.num = 0
        self._num_done = 0
        self._num_unreadable_in_a_row = 0
        self._on_bad_image = on_bad_image
        self._hint = hint
        self._max_rate = max_rate

    def reason(self, path: str, error: ImageError) -> str:
        """Return what is wrong with a picture.

        Raises:
            ImageError: Bad pictures are not tolerated.
        """
        if self._on_bad_image != "fail":
            return error.message
        raise ImageError(f"`{path}`: {error.message}", hint=error.hint or self._hint) from error

    def note(
        self, num_done: int, bad: Sequence[tuple[str, str]], reads: Sequence[Reads] = ()
    ) -> None:
        """Count *num_done* more pictures, and (path, reason) of those that are bad.

        Args:
            num_done: Bad ones included.
            bad: A picture that was tried several times comes as often.
            reads: Of their files, in order.

        Raises:
            ImageTreeError: The last files could not be read, so many that the tree must be gone.
            ImageError: Too many are bad.
        """
        self._num_done += num_done
        self.num += len(bad)
        self.reasons.update(bad)
        for num_unreadable, is_any_read in reads:
            before = 0 if is_any_read else self._num_unreadable_in_a_row
            self._num_unreadable_in_a_row = before + (0 if is_any_read else num_unreadable)
        in_a_row = self._num_unreadable_in_a_row
        too_many = self.num > self._max_rate * max(self._num_done, _LEAST_JUDGED)
        if in_a_row >= (_FEW_UNREADABLE if too_many else _MAX_UNREADABLE):
            path, why = list(self.reasons.items())[-1]
            raise ImageTreeError(
                f"{in_a_row:,} images in a row could not be read, the last one `{path}`: {why}",
                hint=_LOST_HINT,
            )
        if too_many:
            self._raise_too_many()

    def _raise_too_many(self) -> None:
        named = [f"`{path}`: {why}" for path, why in list(self.reasons.items())[:_NUM_NAMED]]
        more = len(self.reasons) - len(named)
        raise ImageError(
            f"{self.num:,} of {self._num_done:,} pictures could not be decoded, more "
            f"than {self._max_rate:.2%}:\n"
            + "\n".join([*named, *([f"and {more:,} more"] if more else [])]),
            hint="find all of them with `vit21k verify --decode`, or raise data.max_bad_rate",
        )
