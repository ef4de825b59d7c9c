"""Random crops by the compiled code and by libjpeg-turbo and torch: equal?

Of every JPEG of a folder, crops are drawn as training draws them, from the file as it is and from
the same tiled as `vit21k pack --lossless` does it; both are decoded and resized in both ways, and
compared bit by bit.

    python tools/check_crops.py FOLDER --crops 10000
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from vit21k.data.draws import uniform_draws
from vit21k.data.picture_file import open_picture
from vit21k.data.random_crops import RandomCrops
from vit21k.data.transforms import TrainTransform
from vit21k.jpeg.crops import crop_decoder
from vit21k.jpeg.headers import NotTileableError
from vit21k.jpeg.recode import recoder, tile_jpeg


def main() -> int:
    """Check as many crops as were asked for; exit code 1 if one differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--crops", type=int, default=10_000)
    parser.add_argument("--img-size", type=int, default=224)
    args = parser.parse_args()
    paths = sorted(path for path in args.folder.rglob("*.[jJ][pP]*[gG]"))[: args.crops]
    transform = TrainTransform(args.img_size, interpolation="bilinear")
    counts = dict.fromkeys(("crops", "compiled", "refused", "different"), 0)
    recode, _ = recoder()
    per_picture = -(-args.crops // max(len(paths), 1))
    for number, path in enumerate(paths):
        contents = [path.read_bytes()]
        try:
            contents.append(tile_jpeg(contents[0], recode))
        except NotTileableError:
            contents.append(contents[0])
        positions = np.arange(per_picture, dtype=np.int64) + number * per_picture
        draws_BD = uniform_draws(0, positions, transform.num_draws)
        check(contents, RandomCrops(transform, draws_BD, decoder=crop_decoder()), counts)
    print(" | ".join(f"{name} {count:,}" for name, count in counts.items()))
    return 1 if counts["different"] or not counts["compiled"] else 0


def check(contents: list[bytes], crops: RandomCrops, counts: dict[str, int]) -> None:
    """Make every crop of *crops* in both ways, of each of *contents* in turn, and count them."""
    num_crops, side = len(crops.draws_BD), crops.transform.img_size
    images_BCHW = np.zeros((num_crops, 3, side, side), dtype=np.uint8)
    files = {index: contents[index % len(contents)] for index in range(num_crops)}
    filled = crops.fill(files, images_BCHW)
    counts["crops"] += num_crops
    counts["compiled"] += len(filled)
    counts["refused"] += num_crops - len(filled)
    expected_CHW = np.zeros_like(images_BCHW[0])
    for index in filled:
        crops(open_picture(files[index]), index, expected_CHW)
        counts["different"] += not np.array_equal(images_BCHW[index], expected_CHW)


if __name__ == "__main__":
    sys.exit(main())
