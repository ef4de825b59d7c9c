"""Random crops by the compiled code and by libjpeg-turbo and torch: equal?

Of every JPEG of a folder, crops are drawn as training draws them, from the file as it is and from
the same tiled as `vit21k pack --lossless` does it; both are decoded and resized in both ways, and
compared bit by bit.

    python tools/check/check_crops.py FOLDER --crops 10000
"""

import sys

import numpy as np
from drawn_crops import drawn_crops, parser_of, report

from vit21k.data.decode import decode_rgb
from vit21k.data.transforms import RandomCrops, TrainTransform, crop_decoder


def main() -> int:
    """Check as many crops as were asked for; exit code 1 if one differs."""
    parser = parser_of(__doc__)
    parser.add_argument("--img-size", type=int, default=224)
    args = parser.parse_args()
    transform = TrainTransform(args.img_size, interpolation="bilinear")
    counts = dict.fromkeys(("crops", "compiled", "refused", "different"), 0)
    for content, tiled, uniforms_BD in drawn_crops(args.folder, args.crops, args.seed):
        crops = RandomCrops(transform, uniforms_BD, decoder=crop_decoder())
        check([content, tiled or content], crops, counts)
    report(counts)
    return 1 if counts["different"] or not counts["compiled"] else 0


def check(contents: list[bytes], crops: RandomCrops, counts: dict[str, int]) -> None:
    """Make every crop of *crops* in both ways, of each of *contents* in turn, and count them."""
    num_crops, side = len(crops.uniforms_BD), crops.transform.img_size
    images_BCHW = np.zeros((num_crops, 3, side, side), dtype=np.uint8)
    files = {index: contents[index % len(contents)] for index in range(num_crops)}
    filled = crops.fill(files, images_BCHW)
    counts["crops"] += num_crops
    counts["compiled"] += len(filled)
    counts["refused"] += num_crops - len(filled)
    expected_CHW = np.zeros_like(images_BCHW[0])
    for index in filled:
        crops(decode_rgb(files[index]), index, expected_CHW)
        counts["different"] += not np.array_equal(images_BCHW[index], expected_CHW)


if __name__ == "__main__":
    sys.exit(main())
