"""What becomes of pictures that cannot be decoded: an error, or counted and named."""

from collections.abc import Sequence
from typing import Literal

from vit21k.errors import ImageError

OnBadImage = Literal["fail", "skip", "replace"]

_LEAST_JUDGED = 1000
"""Pictures before which no rate is a rate."""

_NUM_NAMED = 10
"""Bad pictures that an error names."""


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

    def note(self, num_done: int, bad: Sequence[tuple[str, str]]) -> None:
        """Count *num_done* more pictures, and (path, reason) of those that are bad.

        Raises:
            ImageError: Too many are.
        """
        self._num_done += num_done
        self.num += len(bad)
        self.reasons.update(bad)
        if self.num > self._max_rate * max(self._num_done, _LEAST_JUDGED):
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
