"""The compiled extension: the file scanner (scan.c) and the JPEG code (jpeg/*.c).

It is built when the package is installed, if there is a C compiler.  Without it everything works
through Pillow and python-xxhash, only slower.  Vector instructions are chosen at run time, so one
build runs on every processor of its kind.
"""

import ctypes
from functools import cache
from importlib.util import find_spec
from typing import Literal

from vit21k.errors import Vit21kError

Variant = Literal["avx2", "portable"]


class NoExtensionError(Vit21kError):
    """The package was installed without its compiled extension."""


@cache
def extension() -> ctypes.CDLL:
    """Return the library whose exported functions are those of scan.c, crop.c and recode.c.

    Raises:
        NoExtensionError: It was not built, or cannot be loaded on this machine.
    """
    spec = find_spec("vit21k._native.extension")
    if spec is None or spec.origin is None:
        raise NoExtensionError(
            "the compiled extension was not built when vit21k was installed",
            hint="install a C compiler (gcc, clang), then install vit21k again",
        )
    try:
        return ctypes.CDLL(spec.origin)
    except OSError as error:
        raise NoExtensionError(f"`{spec.origin}` cannot be loaded: {error}") from error


def variants() -> list[Variant]:
    """Return the variants of the crop decoder that this processor can run, the fastest first.

    Raises:
        NoExtensionError: There is no extension.
    """
    return ["avx2", "portable"] if extension().has_avx2() else ["portable"]
