"""A class list -> which known list it is, or is a part of."""

from collections.abc import Sequence
from dataclasses import dataclass

from vit21k.manifest.class_lists import shipped_lists, wnids_of
from vit21k.manifest.classes import ClassList


@dataclass(frozen=True, kw_only=True)
class Match:
    """How a list compares with a known one.

    Attributes:
        name: The known one.
        num_known: Its length.
        num_common: Classes in both.
        missing: Classes of the known one that are not there, in its order.
        extra: Classes that the known one does not have.
        is_same_order: Whether the common classes come in the same order.
    """

    name: str
    num_known: int
    num_common: int
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    is_same_order: bool

    @property
    def is_equal(self) -> bool:
        """Whether it is that list, class indices and all."""
        return not self.missing and not self.extra and self.is_same_order

    @property
    def is_part(self) -> bool:
        """Whether all classes are of that list, and some of that list are missing."""
        return bool(self.missing) and not self.extra and self.num_common > 0


def identify(classes: ClassList) -> list[Match]:
    """Compare *classes* with every list that is shipped; the most alike come first.

    Raises:
        ManifestError: The table of lists was not installed with vit21k, or is damaged.
    """
    matches = [_match(name, classes.wnids) for name in shipped_lists()]
    return sorted(matches, key=lambda match: (len(match.missing) + len(match.extra), match.name))


def _match(name: str, wnids: Sequence[str]) -> Match:
    known = wnids_of(name)
    here, there = set(wnids), set(known)
    common = [wnid for wnid in wnids if wnid in there]
    return Match(
        name=name,
        num_known=len(known),
        num_common=len(common),
        missing=tuple(wnid for wnid in known if wnid not in here),
        extra=tuple(wnid for wnid in wnids if wnid not in there),
        is_same_order=common == [wnid for wnid in known if wnid in here],
    )


def wholes(classes: ClassList) -> list[Match]:
    """Return the known lists that *classes* are only a part of, the shortest first."""
    here = set(classes.wnids)
    names = [name for name in shipped_lists() if here < set(wnids_of(name))]
    return sorted((_match(name, classes.wnids) for name in names), key=lambda m: m.num_known)
