"""Images that are not what they should be: of named kinds, and mutated at random."""

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(
    mode: str = "RGB", image_format: str = "JPEG", size: int = 48, **options: object
) -> bytes:
    """Return an image of noise, encoded."""
    rng = np.random.default_rng(size)
    image = Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG whose header says so, with hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        chunk(b"IDAT", zlib.compress(bytes(1000))),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def named() -> dict[str, tuple[bytes, str | None]]:
    """Return images of each kind, with the problem that each has (None: it is fine)."""
    jpeg, png, gif = encoded(), encoded("RGB", "PNG"), encoded("P", "GIF")
    floats = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(floats, "TIFF")
    return {
        "a JPEG": (jpeg, None),
        "a gray one": (encoded("L"), None),
        "a CMYK one": (encoded("CMYK"), None),
        "a progressive one": (encoded(progressive=True), None),
        "one with junk after its end": (jpeg + b"junk" * 100, None),
        "a PNG": (png, None),
        "a PNG with alpha": (encoded("RGBA", "PNG"), None),
        "a GIF": (gif, None),
        "one pixel": (encoded(size=1), None),
        "nothing": (b"", "empty"),
        "one byte": (b"\xff", "not_an_image"),
        "a web page": (b"<html>404</html>" * 40, "not_an_image"),
        "zeros": (bytes(5000), "not_an_image"),
        "a gzip file": (b"\x1f\x8b\x08\0" + bytes(200), "not_an_image"),
        "a JPEG cut in the middle": (jpeg[: len(jpeg) // 2], "truncated_image"),
        "a JPEG cut at the end": (jpeg[: len(jpeg) * 99 // 100], "truncated_image"),
        "a PNG cut in the middle": (png[: len(png) // 2], "truncated_image"),
        "a bomb": (png_of_size(60_000, 60_000), "too_many_pixels"),
        "a long line": (png_of_size(2_000_000_000, 1), "too_many_pixels"),
        "floats": (floats.getvalue(), "unsupported_pixels"),
    }


def mutated(num_images: int, *, seed: int = 0) -> list[bytes]:
    """Return *num_images* that random changes were made to; some may have stayed whole."""
    rng = random.Random(seed)
    whole = [encoded(), encoded("L"), encoded(progressive=True), encoded("CMYK")]
    whole += [encoded("RGB", "PNG"), encoded("P", "GIF"), encoded("RGB", "WEBP")]
    return [_mutate(bytearray(rng.choice(whole)), rng) for _ in range(num_images)]


def _mutate(content: bytearray, rng: random.Random) -> bytes:
    kind = rng.randrange(6)
    place = rng.randrange(len(content))
    if kind == 0:
        del content[place:]
    elif kind == 1:
        for _ in range(rng.choice((1, 10, 100))):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind == 2:
        del content[place : place + rng.randrange(1, 200)]
    elif kind == 3:
        content[place:place] = rng.randbytes(rng.randrange(1, 200))
    elif kind == 4:  # in the header, where sizes are
        for _ in range(3):
            content[rng.randrange(min(len(content), 200))] = rng.choice((0, 0xFF, 0x7F, 0x80))
    else:
        other = rng.randrange(len(content))
        content[place : place + 64] = content[other : other + 64]
    return bytes(content)
