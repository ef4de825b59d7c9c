"""Tar archives for tests, made by Python's `tarfile` or byte by byte."""

import io
import tarfile
from collections.abc import Iterable, Mapping

FORMATS = {
    "v7": tarfile.USTAR_FORMAT,  # GNU tar makes real ones in the tests that call it
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}


def tar_of(
    files: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    *,
    tar_format: int = tarfile.GNU_FORMAT,
    compressed: bool = False,
) -> bytes:
    """Return a tar of *files*, in their order; names may repeat."""
    out = io.BytesIO()
    pairs = files.items() if isinstance(files, Mapping) else files
    mode = "w:gz" if compressed else "w"
    with tarfile.open(fileobj=out, mode=mode, format=tar_format) as tar:
        for name, content in pairs:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def tar_of_tars(folders: Mapping[str, Mapping[str, bytes]], *, compressed: bool = False) -> bytes:
    """Return a tar of class tars."""
    return tar_of(
        {f"{wnid}.tar": tar_of(files) for wnid, files in folders.items()}, compressed=compressed
    )


def header(
    name: bytes, num_bytes: int | bytes = 0, *, kind: bytes = b"0", signed: bool = False
) -> bytes:
    """Return a ustar header block; *num_bytes* as it is to be stored, if it is bytes."""
    size = num_bytes if isinstance(num_bytes, bytes) else b"%011o\0" % num_bytes
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = block[108:116] = block[116:124] = b"0000644\0"
    block[124:136] = size.ljust(12, b"\0")
    block[136:148] = b"%011o\0" % 0
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    total = sum(block) - (256 * sum(byte > 127 for byte in block) if signed else 0)
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


def padded(content: bytes) -> bytes:
    """Return *content* with zeros up to a whole block."""
    return content + bytes(-len(content) % 512)


END = bytes(1024)
