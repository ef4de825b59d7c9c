"""JPEGs that the compiled code decodes, others that it leaves alone, and damaged ones."""

import gzip
import io
from itertools import product

import numpy as np
import pytest
from PIL import Image

from vit21k._native import variants
from vit21k.data.transforms import crop_decoder
from vit21k.errors import ImageError

SIZES = ((67, 53), (64, 48), (5, 9), (33, 17))


VARIANTS = ("avx2", "portable")


def compiled(variant=None):
    """Return the compiled decoder; skip the test if it is a variant of another processor."""
    if variant and variant not in variants():
        pytest.skip(f"this processor has no {variant}")
    return crop_decoder(variant)


def image(size):
    """Return colours that change from pixel to pixel, so that interpolated chroma shows."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 3 + c) + np.cos(y / 2 - 2 * c) for c in range(3)], axis=2)
    noise = np.random.default_rng(0).normal(0, 20, waves.shape)
    return (128 + 50 * waves + noise).clip(0, 255).astype(np.uint8)


def jpeg(size=SIZES[0], mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(image(size)).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


PLAIN = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "grey": {"mode": "L"},
    "hardly compressed": {"quality": 100, "subsampling": 0},
    "hardly anything left": {"quality": 1},
    "tables of its own": {"optimize": True},
    "tiles": {"restart_marker_blocks": 1},
    "tiles of a row, 4:2:0": {"restart_marker_rows": 1, "subsampling": 2},
    "a comment and a profile": {"comment": b"words", "icc_profile": b"profile" * 99},
}
NOT_PLAIN = {
    "progressive": {"progressive": True},
    "RGB kept": {"keep_rgb": True},
    "CMYK": {"mode": "CMYK"},
}


def _with_frame_bytes(content, old, new):
    """Replace bytes of the frame header (after its two bytes of marker)."""
    start = content.index(b"\xff\xc0")
    assert old in content[start : start + 20]
    return content[:start] + content[start : start + 20].replace(old, new) + content[start + 20 :]


def _with_adobe_segment(content, transform):
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
    jfif_end = 4 + int.from_bytes(content[4:6], "big")
    return content[:2] + adobe + content[jfif_end:]


def _with_frame_byte(place, value):
    content = bytearray(jpeg())
    content[content.index(b"\xff\xc0") + place] = value
    return bytes(content)


TAILS = {
    "nothing": b"",
    "zeros": b"\0" * 999,
    "half a marker": b"\xff",
    "an end marker": b"\xff\xd9",
    "the start of a JPEG": b"\xff\xd8\xff\xe0",
    "another JPEG": jpeg(),
    "the end of another JPEG": jpeg()[300:],
}
"""What may follow the data of a JPEG."""

UNUSUAL = {
    **{f"baseline {name}": jpeg(subsampling=name) for name in ("4:1:1", "4:2:0")},
    **{
        f"progressive {name}": jpeg(subsampling=name, progressive=True)
        for name in ("4:4:4", "4:2:2", "4:2:0", "4:1:1")
    },
    "grey, progressive": jpeg(mode="L", progressive=True),
    "grey, sampled 2 x 2": _with_frame_bytes(jpeg(mode="L"), b"\x01\x11", b"\x01\x22"),
    "restart markers by row, 4:4:4": jpeg(restart_marker_rows=1, subsampling=0),
    "restart markers, progressive": jpeg(restart_marker_rows=1, progressive=True),
    "Adobe, RGB": _with_adobe_segment(jpeg(keep_rgb=True, subsampling=0), 0),
    "Adobe, YCC": _with_adobe_segment(jpeg(), 1),
    "EXIF orientation": jpeg(
        exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    ),
    "comment and profile": jpeg(comment=b"\xff\xd9", icc_profile=b"\xff\xd9" * 99),
    **{f"{tail} after the end": jpeg() + content for tail, content in TAILS.items()},
    "another size after the end": jpeg() + jpeg(size=(99, 99)),
    "fill bytes before a marker": jpeg().replace(b"\xff\xc0", b"\xff\xff\xff\xc0", 1),
    "optimised tables, quality 100": jpeg(quality=100, optimize=True),
    "one pixel": jpeg(size=(1, 1)),
    "gzip'd JPEG": gzip.compress(jpeg(), mtime=0),
    "lossless": _with_frame_byte(1, 0xC3),
    "arithmetic": _with_frame_byte(1, 0xC9),
    "arithmetic, progressive": _with_frame_byte(1, 0xCA),
    "12 bits": _with_frame_byte(4, 12),
    "2 colours": _with_frame_byte(9, 2),
    "4 colours": _with_frame_byte(9, 4),
    **{
        f"{fraction} of a {kind} JPEG, then {tail}": start[: int(len(start) * fraction)] + content
        for kind, start in (
            ("baseline", jpeg((96, 96), exif=b"Exif\0\0\xff\xd9", subsampling=0)),
            ("progressive", jpeg((96, 96), subsampling=0, progressive=True)),
        )
        for fraction, (tail, content) in product((0.3, 0.6, 0.95, 0.999), TAILS.items())
    },
}
"""Files that readers may decode in different ways, and damaged ones."""


def mutated(draw, content):
    content = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at, what = (
            draw.randrange(min(len(content) - 10, draw.choice([30, 700, 9999]))),
            draw.random(),
        )
        if what < 0.7:
            content[at] = draw.randrange(256)
        elif what < 0.8:
            del content[at : at + draw.randint(1, 9)]
        elif what < 0.95:
            content[at:at] = bytes(
                [255, draw.choice(b"\0\xff\xd9\xd0\xd3\xda\xc4\xdb\xfe\xe0\xed")]
            )
        else:
            content = content[: at + 20]
    return bytes(content)


class Files:
    """Images in memory."""

    num_ahead = 0

    def __init__(self, contents):
        self._contents = contents

    def __len__(self):
        return len(self._contents)

    def path(self, row):
        return f"{row}"

    def read_bytes(self, row):
        if self._contents[row] is None:
            raise ImageError("the file is not there")
        return self._contents[row]

    def labels_of(self, rows_B):
        return np.arange(len(rows_B)), rows_B


def mixed_files():
    contents = [jpeg(size, **options) for size, options in product(SIZES, PLAIN.values())]
    contents += [jpeg(**options) for options in NOT_PLAIN.values()]
    return Files([*contents, None, b"no image", contents[0][:300]])
