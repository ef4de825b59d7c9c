"""Pictures of one colour, for what is timed or tried: nothing has to be read for them."""

import torch

from vit21k.data.loader import Batch


def grey_batch(num_images: int, img_size: int) -> Batch:
    """Return images of one colour, each of class 0."""
    return Batch(
        images_BCHW=torch.full((num_images, 3, img_size, img_size), 128, dtype=torch.uint8),
        label_rows_L=torch.arange(num_images),
        label_ids_L=torch.zeros(num_images, dtype=torch.int64),
        rows_B=torch.arange(num_images),
        positions_B=torch.arange(num_images),
    )
