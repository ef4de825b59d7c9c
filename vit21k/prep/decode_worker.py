"""Decode images in a process of its own for `decode_check`: a size and an image in, a verdict out.

It is a process of its own because a decoder that is given hostile bytes may loop, take all memory
or crash: whatever happens here is one image's verdict.
"""

import json
import resource
import sys
import warnings
from pathlib import Path
from typing import BinaryIO

from vit21k.data.decode import MESSAGES, decode_rgb
from vit21k.errors import ImageError
from vit21k.manifest.problems import ProblemKind

SIZE_BYTES = 8


def verdict_on(content: bytes) -> tuple[ProblemKind, str] | None:
    """Decode an image in full, as the loader does; return what is wrong, None if nothing is."""
    try:
        decode_rgb(content)
    except ImageError as error:
        return next(kind for kind in ProblemKind if kind == error.kind), error.message
    return None


def answer_requests(images: BinaryIO, verdicts: BinaryIO) -> None:
    """Answer each image of *images* with a line of JSON, until there are no more.

    A line holds the verdict, and how often the decoder said what.
    """
    while len(size := images.read(SIZE_BYTES)) == SIZE_BYTES:
        content = images.read(int.from_bytes(size, "little"))
        verdict = verdict_on(content)
        verdicts.write(json.dumps([verdict, MESSAGES]).encode() + b"\n")
        verdicts.flush()
        MESSAGES.clear()


def _limit_memory(num_bytes: int) -> None:
    """Limit the memory of this process to *num_bytes* more than now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _count(message: str) -> None:
    MESSAGES[message] += 1


if __name__ == "__main__":
    warnings.simplefilter("always")
    warnings.showwarning = lambda *args, **_more: _count(str(args[0]))
    _limit_memory(int(sys.argv[1]))
    answer_requests(sys.stdin.buffer, sys.stdout.buffer)
