"""Measured rates of this machine: device, images, training step."""

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vit21k.data.augment import Interpolation
from vit21k.data.dataset import ImageRows
from vit21k.data.decode import decode_rgb
from vit21k.data.loader import Batch, TrainLoader
from vit21k.data.sampler import StepSampler
from vit21k.data.transforms import TrainTransform, normalise
from vit21k.device import Precision, autocast, best_seconds, device_name, matmul_flops
from vit21k.losses.sparse import LOSSES
from vit21k.models.cost import is_pit, train_flops_per_image
from vit21k.models.registry import build_model
from vit21k.training.forecast import dummy_batch

# A layer of a large ViT's MLP on a batch, per kind of device: enough to fill it.
_ROWS = {"cpu": 1024, "cuda": 16_384}
_WIDTH, _HIDDEN = 1024, 4096
_COPIED_IMAGES, _IMG_SIZE = 256, 224


@dataclass(frozen=True, kw_only=True)
class DeviceRates:
    """What a device does in a second.

    Attributes:
        name: What it is called.
        matmul_flops: Floating-point operations in matrix products, by precision.
        copied_bytes: From host memory to the device; on a CPU, from memory to memory.
    """

    name: str
    matmul_flops: dict[Precision, float]
    copied_bytes: float


def measure_device(
    device: torch.device, *, precisions: tuple[Precision, ...] = ("fp32", "bf16"), seconds: float
) -> DeviceRates:
    """Return the rates of *device*, in about *seconds*."""
    share = seconds / (len(precisions) + 1)
    shape = (_ROWS.get(device.type, _ROWS["cpu"]), _WIDTH, _HIDDEN)
    flops = {
        precision: matmul_flops(device, precision, shape=shape, seconds=share)
        for precision in precisions
    }
    return DeviceRates(
        name=_describe(device),
        matmul_flops=flops,
        copied_bytes=copied_bytes_a_second(device, seconds=share),
    )


def _describe(device: torch.device) -> str:
    name = device_name(device)
    return name if device.type == "cuda" else f"{name}, {torch.get_num_threads()} threads"


def copied_bytes_a_second(device: torch.device, *, seconds: float) -> float:
    """Return how many bytes of uint8 images a second get to *device*."""
    images = torch.zeros(_COPIED_IMAGES, 3, _IMG_SIZE, _IMG_SIZE, dtype=torch.uint8)
    if device.type == "cuda":
        images = images.pin_memory()
        return images.nbytes / best_seconds(
            lambda: images.to(device, non_blocking=True), device, seconds=seconds
        )
    return images.nbytes / best_seconds(images.clone, device, seconds=seconds)


# ImageNet's median size, and about its mean number of bytes.
_SIZE = (500, 375)
_QUALITY = 93
_NUM_DISTINCT = 16
_NUM_ROWS = 1 << 16
_BATCH = 64
_LEAST_BATCHES = 2


@dataclass(frozen=True, kw_only=True)
class ImageRates:
    """What the host does with images in a second.

    Attributes:
        source: Where they came from.
        mean_bytes: Of a file.
        decoded: Images read, decoded in full and nothing else, by one thread.
        loaded: Images on their way to training, by all threads.
        num_workers: Those threads.
        img_size: Side of the training images, in pixels.
    """

    source: str
    mean_bytes: float
    decoded: float
    loaded: float
    num_workers: int
    img_size: int


class MadeImages:
    """A few JPEGs in memory, over and over; images have their size, bytes and detail."""

    def __init__(self) -> None:
        self._contents = [_photolike(seed) for seed in range(_NUM_DISTINCT)]

    def __len__(self) -> int:
        return _NUM_ROWS

    def path(self, row: int) -> str:
        """Return what an image is called."""
        return f"made image {row % _NUM_DISTINCT}"

    def read_bytes(self, row: int) -> bytes:
        """Return the content of its file."""
        return self._contents[row % _NUM_DISTINCT]

    def labels_of(self, rows_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return a label for each image: class 0."""
        return np.arange(len(rows_B)), np.zeros(len(rows_B), dtype=np.int64)

    num_ahead = 0

    def prefetch(self, rows_B: NDArray[np.int64]) -> None:
        """Do nothing: they are in memory."""


def measure_images(
    images: ImageRows,
    source: str,
    *,
    img_size: int,
    num_workers: int,
    interpolation: Interpolation = "bicubic",
    seconds: float,
) -> ImageRates:
    """Return how fast *images* are decoded and loaded, in about *seconds*.

    Raises:
        ImageError: One is bad.
        OSError: A file cannot be read.
    """
    rows = np.random.default_rng(0).integers(0, len(images), 2 * _NUM_DISTINCT).tolist()
    contents = [images.read_bytes(row) for row in rows]
    return ImageRates(
        source=source,
        mean_bytes=sum(map(len, contents)) / len(contents),
        decoded=_decoded_a_second(contents, seconds / 3),
        loaded=_loaded_a_second(images, img_size, num_workers, interpolation, 2 * seconds / 3),
        num_workers=num_workers,
        img_size=img_size,
    )


def _decoded_a_second(contents: list[bytes], seconds: float) -> float:
    num_done, started_at = 0, time.perf_counter()
    while True:
        for content in contents:
            decode_rgb(content)
            num_done += 1
            if (taken := time.perf_counter() - started_at) > seconds:
                return num_done / taken


def _loaded_a_second(
    images: ImageRows,
    img_size: int,
    num_workers: int,
    interpolation: Interpolation,
    seconds: float,
) -> float:
    sampler = StepSampler(len(images), global_batch_size=min(_BATCH, len(images)), seed=0)
    transform = TrainTransform(img_size, interpolation=interpolation)
    loader = TrainLoader(
        images,
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
    """Return a JPEG of noise whose detail falls with its fineness, as in images."""
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


_SHALLOW = (1, 3)
_GREY = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class StepRate:
    """What training takes, without reading images.

    Attributes:
        images: A second, in forward and backward passes.
        flops: Operations in matrix products a second, counted as 6 for each multiplication.
        update_seconds: That the optimizer takes for one update, on top of that.
        num_images: Images of the pass that was timed.
        measured: What was timed: "whole model", or which parts of it.
    """

    images: float
    flops: float
    update_seconds: float
    num_images: int
    measured: str


def measure_step(
    args: Mapping[str, Any],
    *,
    device: torch.device,
    precision: Precision,
    loss_kind: str,
    matmul_flops: float,
    num_images: int | None = None,
    seconds: float,
) -> StepRate:
    """Return how fast the model of constructor arguments *args* trains.

    Args:
        args: As `model_args` returns them.
        device: Where.
        precision: Of matrix products.
        loss_kind: "sigmoid" or "softmax".
        matmul_flops: What the device can do at most, a second; to see how long it will take.
        num_images: Of a pass; None: as many as fit the time, up to 64.
        seconds: About how long to measure.
    """
    flops = train_flops_per_image(args)
    rounds = 4  # with the first one, which is not timed; at half of the ceiling
    if num_images is None:
        num_images = max(2, min(64, int(seconds * matmul_flops / 2 / (rounds * flops))))
    timed = partial(
        _step_seconds,
        device=device,
        precision=precision,
        loss_kind=loss_kind,
        num_images=num_images,
    )
    takes = rounds * num_images * flops / (matmul_flops / 2)
    if device.type != "cpu" or takes <= seconds or is_pit(args) or args["depth"] <= _SHALLOW[1]:
        (took, update), measured = timed(args, seconds=seconds), "the whole model"
    else:
        few, more = (timed({**args, "depth": n}, seconds=seconds / 2) for n in _SHALLOW)
        took, update = (_at_depth(args["depth"], *pair) for pair in zip(few, more, strict=True))
        measured = f"models of {_SHALLOW[0]} and {_SHALLOW[1]} of {args['depth']} blocks"
    images = num_images / took
    return StepRate(
        images=images,
        flops=flops * images,
        update_seconds=update,
        num_images=num_images,
        measured=measured,
    )


def _at_depth(depth: int, few: float, more: float) -> float:
    """Return the time of *depth* blocks, from those of the two shallow models."""
    block = (more - few) / (_SHALLOW[1] - _SHALLOW[0])
    return few + block * (depth - _SHALLOW[0])


def _step_seconds(
    args: Mapping[str, Any],
    *,
    device: torch.device,
    precision: Precision,
    loss_kind: str,
    num_images: int,
    seconds: float,
) -> tuple[float, float]:
    """Return the time of a forward and a backward pass, and of an update."""
    torch.manual_seed(0)
    model = build_model(args).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    batch = dummy_batch(num_images, args["img_size"])

    def passes() -> None:
        loss = loss_of(model, batch, device=device, precision=precision, loss_kind=loss_kind)
        loss.backward()

    return (
        best_seconds(passes, device, seconds=0.8 * seconds),
        best_seconds(optimizer.step, device, seconds=0.2 * seconds),
    )


def loss_of(
    model: nn.Module, batch: Batch, *, device: torch.device, precision: Precision, loss_kind: str
) -> Tensor:
    """Return the loss of a batch, from uint8 images on the host."""
    images = normalise(batch.images_BCHW.to(device, non_blocking=True), _GREY, _GREY)
    with autocast(device, precision):
        logits = model(images)
    rows, ids = batch.label_rows_L.to(device), batch.label_ids_L.to(device)
    return LOSSES[loss_kind](logits, rows, ids)
