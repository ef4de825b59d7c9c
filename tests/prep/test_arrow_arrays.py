"""`prep.arrow_arrays`: what `pyarrow.array` gives, without pandas."""

import subprocess
import sys
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from vit21k.prep.hash_chunks import arrow_array

VALUES = [
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    (pa.bool_(), st.booleans()),
    (pa.string(), st.text(st.characters(codec="utf-8"))),
    (pa.binary(16), st.binary(min_size=16, max_size=16)),
]
arrays = st.one_of(
    st.tuples(st.just(dtype), st.lists(st.one_of(st.none(), values), max_size=30))
    for dtype, values in VALUES
)


@settings(max_examples=100)
@given(arrays)
def test_arrays_are_those_of_pyarrow(array: tuple[pa.DataType, list[Any]]) -> None:
    dtype, values = array

    made = arrow_array(values, dtype)

    made.validate(full=True)
    assert made.equals(pa.array(values, dtype))


def test_hashing_does_not_import_pandas_or_compute_functions(tmp_path: Any) -> None:
    (tmp_path / "tree" / "n1").mkdir(parents=True)
    (tmp_path / "tree" / "n1" / "a.JPEG").write_bytes(b"a")
    program = (
        "import sys; from pathlib import Path; from vit21k.prep.hash_tree import hash_tree;"
        "hash_tree(Path('tree'), Path('m'));"
        "assert not {'pandas', 'pyarrow.compute'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
