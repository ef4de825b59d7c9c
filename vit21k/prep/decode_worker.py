"""A process that decodes pictures for `decode_check`: a size and a picture in, a verdict out.

It is a process of its own because a decoder that is given hostile bytes may loop, take all memory
or crash: whatever happens here is one picture's verdict.
"""

import json
import resource
import sys
from pathlib import Path
from typing import BinaryIO

from PIL import UnidentifiedImageError

from vit21k.data.decode import decode_rgb
from vit21k.errors import ImageError
from vit21k.manifest.problems import ProblemKind

SIZE_BYTES = 8

_MAGIC = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_SIGNS_OF_TRUNCATION = ("truncated", "unexpected end", "not enough", "eof", "broken data stream")


def verdict_on(content: bytes) -> tuple[ProblemKind, str] | None:
    """Decode a picture in full, as the loader does; return what is wrong, None if nothing is."""
    try:
        decode_rgb(content)
    except MemoryError:
        return ProblemKind.TOO_MUCH_MEMORY, ""
    except ImageError as error:
        return _kind_of(error, content), error.message
    except Exception as error:  # noqa: BLE001, RUF100 (whatever a decoder raises, it is damage)
        return ProblemKind.DAMAGED_IMAGE, f"{type(error).__name__}: {error}"
    return None


def _kind_of(error: ImageError, content: bytes) -> ProblemKind:
    cause = str(error.__cause__ or "").lower()
    if not content:
        return ProblemKind.EMPTY
    if "pixels are more than" in error.message or "decompression bomb" in cause:
        return ProblemKind.TOO_MANY_PIXELS
    if "floating-point" in error.message:
        return ProblemKind.UNSUPPORTED_PIXELS
    if not content.startswith(_MAGIC):
        return ProblemKind.NOT_AN_IMAGE
    if isinstance(error.__cause__, EOFError) or any(sign in cause for sign in _SIGNS_OF_TRUNCATION):
        return ProblemKind.TRUNCATED_IMAGE
    is_unknown = isinstance(error.__cause__, UnidentifiedImageError)
    return ProblemKind.NOT_AN_IMAGE if is_unknown else ProblemKind.DAMAGED_IMAGE


def serve(pictures: BinaryIO, verdicts: BinaryIO) -> None:
    """Answer each picture of *pictures* with a line of JSON, until there are no more."""
    while len(size := pictures.read(SIZE_BYTES)) == SIZE_BYTES:
        content = pictures.read(int.from_bytes(size, "little"))
        verdict = verdict_on(content)
        verdicts.write(json.dumps(verdict).encode() + b"\n")
        verdicts.flush()


def _limit_memory(num_bytes: int) -> None:
    """Let this process have *num_bytes* more than it has now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _limit_memory(int(sys.argv[1]))
    serve(sys.stdin.buffer, sys.stdout.buffer)
