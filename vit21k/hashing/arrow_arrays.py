"""Python values -> Arrow arrays, without `pyarrow.array`.

That function imports pandas, if it is installed, to see whether it was given a Series: 0.25 s and
45 MB, more than hashing ten thousand files takes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


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


def array_of_numbers(
    values: NDArray[Any], dtype: pa.DataType, is_valid: NDArray[np.bool_] | None = None
) -> pa.Array:
    """Return *values* as an array of *dtype*.

    Args:
        values: Booleans, or items of as many bytes as those of *dtype*; need not lie side by side.
        dtype: A fixed-width integer, boolean, or fixed-size binary type.
        is_valid: Which of them are not null; default: all.
    """
    validity = None if is_valid is None or is_valid.all() else _bits(is_valid)
    if pa.types.is_boolean(dtype):
        data = _bits(values)
    else:
        data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(dtype, len(values), [validity, data])


def array_of_texts(texts: Sequence[str], places: NDArray[np.integer]) -> pa.Array:
    """Return those of *texts* that *places* say, null where they say -1, as an array of strings."""
    encoded = [*(text.encode() for text in texts), b""]  # -1 is the last
    lengths = np.array([len(text) for text in encoded])[places]
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
    is_valid = places >= 0
    validity = None if is_valid.all() else _bits(is_valid)
    data = b"".join([encoded[place] for place in places.tolist()])
    buffers = [validity, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.string(), len(places), buffers)


def _validity(values: Sequence[Any]) -> pa.Buffer | None:
    if None not in values:
        return None
    return _bits(np.fromiter((value is not None for value in values), bool, len(values)))


def _bits(flags: np.ndarray) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def _text_buffers(values: Sequence[str | None]) -> list[pa.Buffer]:
    joined = "\0".join([*(value or "" for value in values), ""]).encode()
    ends = np.flatnonzero(np.frombuffer(joined, np.uint8) == 0)
    if len(ends) == len(values):
        data, ends = joined.replace(b"\0", b""), ends - np.arange(len(ends))
    else:  # there is a 0 in one of them
        texts = [value.encode() if value else b"" for value in values]
        data, ends = b"".join(texts), np.cumsum([len(text) for text in texts])
    offsets = np.append(0, ends).astype(np.int32)
    return [pa.py_buffer(offsets), pa.py_buffer(data)]
