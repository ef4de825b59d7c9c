"""Files of published data sets that are known to be unreadable, to compare problems with.

Source: `data/data_fd.py` of SwinTransformer/Feature-Distillation at commit becd8b3 (MIT), which
skips these files of fall11.  20 of the 27 are of classes that winter21 kept; those 20 are the ones
that segme (shkarupa-alex/segme) skips of winter21.
"""

from collections.abc import Iterable

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
"""Names without suffix."""


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
