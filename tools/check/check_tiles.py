"""Random crops of tiled images, decoded from their tiles alone and from the whole: equal?

Every JPEG of a folder is tiled; of each, crops are drawn as training draws them. Their tiles are
cut out, decoded by Pillow and, if it is installed, by simplejpeg, and compared with the same part
of the whole image's decoding, pixel by pixel.

    python tools/check/check_tiles.py FOLDER --crops 10000
"""

import io
import sys

import numpy as np
from drawn_crops import drawn_crops, parser_of, report
from PIL import Image

from vit21k.data.decode import decode_rgb
from vit21k.data.image import decode_jpeg
from vit21k.data.transforms import crop_box
from vit21k.jpeg.tiles import compiled_recoder, parse_tile_jpeg, tile_jpeg


def main() -> int:
    """Check as many crops as were asked for; exit code 1 if one differs."""
    args = parser_of(__doc__).parse_args()
    recode = compiled_recoder()
    counts = dict.fromkeys(("crops", "cut", "whole", "different", "not_tiled"), 0)
    sizes = {"before": 0, "tiled": 0, "with_metadata": 0}
    for content, tiled, draws_BD in drawn_crops(args.folder, args.crops, args.seed):
        if tiled is None:
            counts["not_tiled"] += 1
            continue
        sizes["before"] += len(content)
        sizes["tiled"] += len(tiled)
        sizes["with_metadata"] += len(tile_jpeg(content, recode, keep_metadata=True))
        check(content, tiled, draws_BD.tolist(), counts)
    report(counts)
    share = {name: size / max(sizes["before"], 1) for name, size in sizes.items()}
    print(f"size x{share['tiled']:.4f}, with all metadata x{share['with_metadata']:.4f}")
    return 1 if counts["different"] or not counts["crops"] else 0


def check(content: bytes, tiled: bytes, draws: list[list[float]], counts: dict[str, int]) -> None:
    """Compare crops of *tiled* with the decoding of *content*, and count them."""
    whole = np.asarray(decode_rgb(content))
    tiles = parse_tile_jpeg(tiled)
    if tiles is None:
        raise ValueError("what was tiled is no tile JPEG")
    for numbers in draws:
        box = left, top, right, bottom = crop_box(
            tiles.size, numbers, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)
        )
        counts["crops"] += 1
        cut = tiles.cut(box)
        counts["whole" if cut is None else "cut"] += 1
        small = tiled if cut is None else cut.content
        x, y = (left, top) if cut is None else (left - cut.left, top - cut.top)
        decoded = [np.asarray(Image.open(io.BytesIO(small)).convert("RGB")), decode_jpeg(small)]
        parts = [each[y : y + bottom - top, x : x + right - left] for each in decoded]
        counts["different"] += any(
            not np.array_equal(part, whole[top:bottom, left:right]) for part in parts
        )


if __name__ == "__main__":
    sys.exit(main())
