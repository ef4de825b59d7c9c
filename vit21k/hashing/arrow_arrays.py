"""Python values -> Arrow arrays, without `pyarrow.array`.

That function imports pandas, if it is installed, to see whether it was given a Series: 0.25 s and
45 MB, more than hashing ten thousand files takes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa


def arrow_array(values: Sequence[Any], dtype: pa.DataType) -> pa.Array:
    """Return *values*, some of which may be None, as an array of *dtype*.

    Args:
        values: Integers, booleans, strings, or bytes of one length.
        dtype: A fixed-width integer, boolean, string, or fixed-size binary type.
    """
    validity = _validity(values)
    if pa.types.is_string(dtype):
        buffers = _text_buffers(values)
    elif pa.types.is_boolean(dtype):
        buffers = [_bits(np.fromiter(map(bool, values), bool, len(values)))]
    elif pa.types.is_fixed_size_binary(dtype):
        blank = bytes(dtype.byte_width)
        buffers = [pa.py_buffer(b"".join([value or blank for value in values]))]
    else:
        numbers = [value or 0 for value in values] if validity else values
        buffers = [pa.py_buffer(np.fromiter(numbers, dtype.to_pandas_dtype(), len(values)))]
    return pa.Array.from_buffers(dtype, len(values), [validity, *buffers])


def _validity(values: Sequence[Any]) -> pa.Buffer | None:
    if None not in values:
        return None
    return _bits(np.fromiter((value is not None for value in values), bool, len(values)))


def _bits(flags: np.ndarray) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def _text_buffers(values: Sequence[str | None]) -> list[pa.Buffer]:
    texts = [value.encode() if value else b"" for value in values]
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    offsets = np.append(0, ends).astype(np.int32)
    return [pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))]
