"""Pixels as they are, behind a header of one line: PPM, which Pillow and webdataset read.

Call crop.c of the compiled extension: images -> crops of one size.

Images are plain JPEGs, tiled or not, and raw ones as `vit21k pack --raw` writes them.

A call is for many images, and the interpreter's lock is not held meanwhile: what an image costs
in Python is a few microseconds.  Nothing needs this: what is refused here, or all where the
extension was not built, is decoded in the ordinary way, to the same pixels.

Dimensions: B images of a batch, C colours, H W pixels.
"""

import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit21k._native import Variant, extension, variants


def to_ppm(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """Return RGB *pixels_HWC* as a file."""
    height, width, _ = pixels_HWC.shape
    return b"P6\n%d %d\n255\n" % (width, height) + pixels_HWC.tobytes()


_DONE = 0
_FACTS, _NUMBERS = 3, 10  # int32 of an image, of a crop
_PRECISIONS = {"torch": 0, "pillow": 22}  # bits of a weight's fraction; 0: found for each

Resampling = Literal["torch", "pillow"]
"""Whose antialiased resampling of uint8 it is, to the bit."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom; right and bottom are outside."""


class PlainImage(NamedTuple):
    """An image that can be decoded here, as far as its headers tell.

    Attributes:
        width: Pixels.
        height: Pixels.
        has_odd_metadata: Another reader may trip over its metadata.
    """

    width: int
    height: int
    has_odd_metadata: bool


class Crop(NamedTuple):
    """What is wanted of an image: a window of a box of it that is resized.

    Attributes:
        box: What is resized.
        is_flipped: The result is, from left to right.
        resized: Width and height of the box then; None: those of the result.
        window: Left and top of the result in that.
        takes_columns_first: They are resized before rows, and rounded to 8 bits in between.
    """

    box: Box
    is_flipped: bool = False
    resized: tuple[int, int] | None = None
    window: tuple[int, int] = (0, 0)
    takes_columns_first: bool = False


class CropDecoder:
    """The functions of crop.c; any number of threads may share them."""

    def __init__(self, library: ctypes.CDLL, variant: Variant) -> None:
        names = ("new_decoder", "free_decoder", "measure", "crop_all")
        self._threads = threading.local()
        self._new, self._free, self._measure, self._crop_all = (
            getattr(library, f"{name}_{variant}") for name in names
        )
        place, number = ctypes.c_void_p, ctypes.c_int
        self._new.restype, self._new.argtypes = place, []
        self._free.restype, self._free.argtypes = None, [place]
        self._measure.restype = self._crop_all.restype = None
        self._measure.argtypes = [place, place, number, place]
        self._crop_all.argtypes = [place] * 4 + [number] * 4 + [place] * 2

    def measure(self, contents: Sequence[bytes]) -> list[PlainImage | None]:
        """Return what the headers of each file say; None for what cannot be decoded here."""
        num = len(contents)
        facts = (ctypes.c_int32 * (_FACTS * num))()
        self._measure(*_as_c(contents), num, facts)
        rows = zip(*[iter(facts)] * _FACTS, strict=True)
        return [PlainImage(w, h, bool(odd)) if w else None for w, h, odd in rows]

    def crop(
        self,
        contents: Sequence[bytes],
        crops: Sequence[Crop],
        images_BCHW: NDArray[np.uint8],
        places: Sequence[int],
        mode: str,
        resampling: Resampling = "torch",
    ) -> list[bool]:
        """Write each crop to its place; return for each whether that was done.

        What was not has to be decoded elsewhere.

        Args:
            contents: Files that can be decoded here.
            crops: Of each, within the image.
            images_BCHW: Contiguous, as high as wide.
            places: Where in it each crop goes.
            mode: "bilinear" or "bicubic".
            resampling: Whose; torch's only of whole boxes.
        """
        num = len(contents)
        if not num:
            return []
        size, is_bicubic = images_BCHW.shape[-1], mode == "bicubic"
        numbers = [number for crop in crops for number in _numbers(crop, size)]
        first, step = images_BCHW.ctypes.data, images_BCHW.strides[0]
        outs = (ctypes.c_void_p * num)(*(first + step * place for place in places))
        statuses = (ctypes.c_int32 * num)()
        crops_C = (ctypes.c_int32 * (_NUMBERS * num))(*numbers)
        how = (size, is_bicubic, _PRECISIONS[resampling])
        self._crop_all(self._decoder(), *_as_c(contents), crops_C, num, *how, outs, statuses)
        return [status == _DONE for status in statuses]

    def _decoder(self) -> int:
        """Return what this thread keeps from image to image: tables, and room to work in."""
        if not hasattr(self._threads, "decoder"):
            self._threads.decoder = _Decoder(self._new(), self._free)
        address: int = self._threads.decoder.address
        return address


class _Decoder:
    """Memory of a thread, freed when the thread ends."""

    def __init__(self, address: int | None, free: Callable[[int], None]) -> None:
        if not address:
            raise MemoryError
        self.address = address
        weakref.finalize(self, free, address).atexit = False


def _numbers(crop: Crop, size: int) -> tuple[int, ...]:
    resized = crop.resized or (size, size)
    return (*crop.box, *resized, *crop.window, crop.is_flipped, crop.takes_columns_first)


def _as_c(contents: Sequence[bytes]) -> tuple[Any, Any]:
    num = len(contents)
    return (ctypes.c_char_p * num)(*contents), (ctypes.c_int64 * num)(*map(len, contents))


@cache
def crop_decoder(variant: Variant | None = None) -> CropDecoder:
    """Return the compiled decoder.

    Args:
        variant: One of `variants()`; default: the fastest that this processor can run.

    Raises:
        NoExtensionError: There is no compiled extension.
    """
    return CropDecoder(extension(), variant or variants()[0])
