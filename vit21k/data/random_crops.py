"""What training does to the pictures of a batch: a random crop, and what a policy adds.

Dimensions: B images of a batch, D numbers drawn for each, C colours, H W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vit21k.data.augment import Policy, augment_in_place
from vit21k.data.picture import Picture
from vit21k.data.plain_pictures import fill_plain
from vit21k.data.transforms import TrainTransform
from vit21k.jpeg.crops import Crop, CropDecoder


@dataclass(frozen=True)
class RandomCrops:
    """Crops of a batch.  Two ways lead to the same pixels, to the bit.

    `fill` takes many pictures with two calls of compiled code, and leaves out what is neither a
    plain JPEG nor raw, or damaged in any way; calling the instance takes one picture of any kind.

    Attributes:
        transform: Crop and flip.
        draws_BD: Uniform numbers of each picture: those of the transform, then those of the policy.
        policy: What is done to a crop; None: nothing.
        decoder: The compiled code; None: `fill` fills nothing.
    """

    transform: TrainTransform
    draws_BD: NDArray[np.float64]
    policy: Policy | None = None
    decoder: CropDecoder | None = None

    def __call__(self, picture: Picture, index: int, out: NDArray[np.uint8]) -> None:
        """Write the crop of the picture at a place of the batch to *out* (3, H, W).

        Raises:
            ImageError: The picture is damaged.
        """
        self.transform(picture, self.draws_BD[index], out)
        self._finish(index, out)

    def fill(self, contents: Mapping[int, bytes], images_BCHW: NDArray[np.uint8]) -> set[int]:
        """Write the crops of plain pictures to their places of the batch; return these places.

        Args:
            contents: Files, by place in the batch.
            images_BCHW: The batch.
        """
        if not self.decoder:
            return set()
        mode = self.transform.interpolation
        filled = fill_plain(self.decoder, contents, images_BCHW, self._crop, mode, "torch")
        for place in filled:
            self._finish(place, images_BCHW[place])
        return filled

    def _crop(self, place: int, size: tuple[int, int]) -> Crop:
        return self.transform.crop(size, self.draws_BD[place].tolist())

    def _finish(self, index: int, image_CHW: NDArray[np.uint8]) -> None:
        if self.policy:
            draws = self.draws_BD[index, self.transform.num_draws :].tolist()
            augment_in_place(image_CHW, self.policy, draws)
