"""Made-up images that are alike as images are: smooth, with detail at every scale."""

import io

import numpy as np
from PIL import Image


def photolike(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Return a colour image of its own; the same for the same seed and size."""
    rng = np.random.default_rng(seed)
    width, height = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    amplitude = 1 / np.maximum(frequency, 1 / max(size))
    planes = np.fft.ifft2(np.fft.fft2(rng.standard_normal((3, height, width))) * amplitude).real
    planes[1:] = planes[:1] + 0.3 * planes[1:]  # colours go along with brightness
    planes -= planes.mean(axis=(1, 2), keepdims=True)
    planes *= 50 / planes.std(axis=(1, 2), keepdims=True)
    pixels = (planes + 128).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def encoded(image: Image.Image, image_format: str = "JPEG", **options: object) -> bytes:
    """Return the image as a file."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()
