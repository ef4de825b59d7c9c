"""Names that are shown: those of files may hold line breaks, codes for a terminal, any bytes."""

import os

_CODES = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _CODES}


_CODES_ALONE = {code: text for code, text in _ESCAPES.items() if chr(code) not in "\n\t"}


def without_codes(text: str) -> str:
    r"""Return *text* with control characters as ``\x1b``; its lines and tabs stay."""
    return text.translate(_CODES_ALONE)


def one_line(text: str) -> str:
    r"""Return *text*, control characters and line breaks as ``\n``, ``\x1b``, ``\u2028``."""
    return text.translate(_ESCAPES)


def printable(path: bytes | str | os.PathLike[str]) -> str:
    r"""Return *path* as text; bytes that are not UTF-8 as ``\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
