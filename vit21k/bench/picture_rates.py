"""How fast pictures are read, decoded and made into batches."""

import io
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit21k.data.loader import TrainLoader
from vit21k.data.picture_file import open_picture
from vit21k.data.rows import PictureRows
from vit21k.data.sampler import StepSampler
from vit21k.data.transforms import Interpolation, TrainTransform

# ImageNet's median size, and about its mean number of bytes.
_SIZE = (500, 375)
_QUALITY = 93
_NUM_DISTINCT = 16
_NUM_ROWS = 1 << 16
_BATCH = 64
_LEAST_BATCHES = 2


@dataclass(frozen=True, kw_only=True)
class PictureRates:
    """What the host does with pictures in a second.

    Attributes:
        source: Where they came from.
        mean_bytes: Of a file.
        decoded: Pictures read, decoded in full and nothing else, by one thread.
        loaded: Pictures on their way to training, by all threads.
        num_workers: Those threads.
        img_size: Side of the training images, in pixels.
    """

    source: str
    mean_bytes: float
    decoded: float
    loaded: float
    num_workers: int
    img_size: int


class MadePictures:
    """A few JPEGs in memory, over and over; photographs have their size, bytes and detail."""

    def __init__(self) -> None:
        self._contents = [_photolike(seed) for seed in range(_NUM_DISTINCT)]

    def __len__(self) -> int:
        return _NUM_ROWS

    def path(self, row: int) -> str:
        """Return what a picture is called."""
        return f"made picture {row % _NUM_DISTINCT}"

    def read_bytes(self, row: int) -> bytes:
        """Return the content of its file."""
        return self._contents[row % _NUM_DISTINCT]

    def labels_of(self, rows_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return a label for each picture: class 0."""
        return np.arange(len(rows_B)), np.zeros(len(rows_B), dtype=np.int64)


def measure_pictures(
    pictures: PictureRows,
    source: str,
    *,
    img_size: int,
    num_workers: int,
    interpolation: Interpolation = "bicubic",
    seconds: float,
) -> PictureRates:
    """Return how fast *pictures* are decoded and loaded, in about *seconds*.

    Raises:
        ImageError: One is bad.
        OSError: A file cannot be read.
    """
    rows = np.random.default_rng(0).integers(0, len(pictures), 2 * _NUM_DISTINCT).tolist()
    contents = [pictures.read_bytes(row) for row in rows]
    return PictureRates(
        source=source,
        mean_bytes=sum(map(len, contents)) / len(contents),
        decoded=_decoded_a_second(contents, seconds / 3),
        loaded=_loaded_a_second(pictures, img_size, num_workers, interpolation, 2 * seconds / 3),
        num_workers=num_workers,
        img_size=img_size,
    )


def _decoded_a_second(contents: list[bytes], seconds: float) -> float:
    num_done, started_at = 0, time.perf_counter()
    while True:
        for content in contents:
            open_picture(content).image().load()
            num_done += 1
            if (taken := time.perf_counter() - started_at) > seconds:
                return num_done / taken


def _loaded_a_second(
    pictures: PictureRows,
    img_size: int,
    num_workers: int,
    interpolation: Interpolation,
    seconds: float,
) -> float:
    sampler = StepSampler(len(pictures), global_batch_size=min(_BATCH, len(pictures)), seed=0)
    transform = TrainTransform(img_size, interpolation=interpolation)
    loader = TrainLoader(
        pictures,
        sampler,
        transform,
        device_batch_size=_BATCH,
        num_workers=num_workers,
        seed=0,
        on_bad_image="skip",
    )
    with loader:
        # The first batches were decoded while nothing was taken: they would count too fast.
        for step in range(_LEAST_BATCHES):
            _take(loader, step)
        num_done, step, started_at = 0, _LEAST_BATCHES, time.perf_counter()
        while True:
            num_done += _take(loader, step)
            step += 1
            taken = time.perf_counter() - started_at
            if taken > seconds and step > 2 * _LEAST_BATCHES:
                return num_done / taken


def _take(loader: TrainLoader, step: int) -> int:
    return sum(len(batch.rows_B) for batch in loader.micro_batches(step))


def _photolike(seed: int) -> bytes:
    """Return a JPEG of noise whose detail falls with its fineness, as in photographs."""
    rng = np.random.default_rng(seed)
    width, height = _SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    amplitude = 1 / np.maximum(frequency, 1 / max(_SIZE))
    planes = np.fft.ifft2(np.fft.fft2(rng.standard_normal((3, height, width))) * amplitude).real
    planes[1:] = planes[:1] + 0.3 * planes[1:]  # colours go along with brightness
    planes *= 50 / planes.std(axis=(1, 2), keepdims=True)
    pixels = (planes + 128).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
