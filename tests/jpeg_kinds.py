"""JPEGs that the compiled code decodes, others that it leaves alone, and damaged ones."""

import io
from itertools import product

import numpy as np
import pytest
from PIL import Image

from vit21k._native import variants
from vit21k.errors import ImageError
from vit21k.jpeg.crops import crop_decoder

SIZES = ((67, 53), (64, 48), (5, 9), (33, 17))


VARIANTS = ("avx2", "portable")


def compiled(variant=None):
    """Return the compiled decoder; skip the test if it is a variant of another processor."""
    if variant and variant not in variants():
        pytest.skip(f"this processor has no {variant}")
    return crop_decoder(variant)


def picture(size):
    """Return colours that change from pixel to pixel, so that interpolated chroma shows."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 3 + c) + np.cos(y / 2 - 2 * c) for c in range(3)], axis=2)
    noise = np.random.default_rng(0).normal(0, 20, waves.shape)
    return (128 + 50 * waves + noise).clip(0, 255).astype(np.uint8)


def jpeg(size=SIZES[0], mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(picture(size)).convert(mode).save(file, "JPEG", **options)
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
    """Pictures in memory."""

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
    return Files([*contents, None, b"no picture", contents[0][:300]])
