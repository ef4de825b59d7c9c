"""`prep.spool`: what went in comes out, in order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vit21k.prep.hash_archives import Spool


@given(
    st.lists(
        st.tuples(st.binary(max_size=4), st.integers()), max_size=200, unique_by=lambda t: t[0]
    )
)
@settings(max_examples=50)
def test_items_come_out_by_their_keys(items: list[tuple[bytes, int]]) -> None:
    with Spool[int]() as spool:
        for key, item in items:
            spool.add(key, item)
        found = list(spool.in_order())

    assert found == [item for _, item in sorted(items)]


def test_more_than_fits_in_memory_comes_out_too() -> None:
    with Spool[bytes]() as spool:
        for number in reversed(range(100)):
            spool.add(b"%03d" % number, bytes([number]) * (1 << 20))
        found = [item[0] for item in spool.in_order()]

    assert found == list(range(100))
