"""Fingerprints: pixel digests, thumbnails, hashes and views."""

import numpy as np
import pytest
from photolike import encoded, photolike
from PIL import Image

from vit21k.errors import ImageError
from vit21k.near.fingerprint import (
    AS_IS,
    BAND_BITS,
    NUM_BANDS,
    NUM_BITS,
    THUMB_SIDE,
    View,
    distance,
    fingerprint,
    hash_bits,
    is_flat,
    keys,
    matrices,
    pixel_digest,
    thumbnail,
)
from vit21k.near.search import similarity


def test_lossless_copies_in_two_formats_have_one_pixel_digest() -> None:
    image = photolike(0)

    png, bmp = (fingerprint(encoded(image, name)) for name in ("PNG", "BMP"))

    assert png.pixel_digest == bmp.pixel_digest


def test_a_pixel_that_differs_changes_the_pixel_digest() -> None:
    image, changed = photolike(0), photolike(0)
    changed.putpixel((3, 3), (1, 2, 3))

    assert pixel_digest(image) != pixel_digest(changed)


def test_the_size_counts_where_the_bytes_of_the_pixels_are_equal() -> None:
    wide, high = (Image.new("RGB", size, (9, 9, 9)) for size in ((8, 2), (2, 8)))

    assert pixel_digest(wide) != pixel_digest(high)


def test_what_is_not_an_image_has_no_fingerprint() -> None:
    with pytest.raises(ImageError, match="not an image"):
        fingerprint(b"<html>")


def test_a_single_colour_is_flat_and_an_image_is_not() -> None:
    thumbs = np.stack([thumbnail(Image.new("RGB", (50, 40), (7, 80, 9))), thumbnail(photolike(1))])

    assert is_flat(thumbs).tolist() == [True, False]


def test_a_hash_is_256_bits_of_which_about_half_are_set() -> None:
    words = hash_bits(np.stack([thumbnail(photolike(seed)) for seed in range(20)]))

    share = np.bitwise_count(words).sum(axis=1) / NUM_BITS
    assert words.shape == (20, 4)
    assert (np.abs(share - 0.5) < 0.2).all()


def test_looking_through_a_mirror_is_hashing_the_mirrored_thumbnail() -> None:
    thumbs = np.stack([thumbnail(photolike(seed)) for seed in range(5)])

    seen = hash_bits(thumbs, View(is_mirrored=True))

    assert distance(seen, hash_bits(np.ascontiguousarray(thumbs[:, :, ::-1]))).tolist() == [0] * 5


def test_a_window_is_nearer_to_the_crop_than_the_whole_image_is() -> None:
    image = photolike(2, (320, 320))
    crop = thumbnail(image.crop((0, 0, 304, 304)))[None]
    whole = thumbnail(image)[None]

    through_window = hash_bits(whole, View(width=0.95, height=0.95, left=0.0, top=0.0))

    assert distance(through_window, hash_bits(crop)) < distance(hash_bits(whole), hash_bits(crop))


@pytest.mark.parametrize("view", [AS_IS, View(width=0.9, height=0.8, left=0.3, top=1.0)])
def test_a_view_of_one_colour_is_that_colour(view: View) -> None:
    rows, cols = matrices(view)

    seen = rows @ np.full((THUMB_SIDE, THUMB_SIDE), 7.0, dtype=np.float32) @ cols.T

    assert np.allclose(seen, 7.0, atol=1e-4)


def test_keys_are_the_named_bands_of_the_first_word() -> None:
    word = sum(band << (BAND_BITS * band) for band in range(NUM_BANDS))
    words = np.array([[word, 0, 0, 0]], dtype=np.uint64)

    assert keys(words, (5, 0, 3)).tolist() == [5 << (2 * BAND_BITS) | 3]


def test_similarity_does_not_depend_on_which_is_the_crop() -> None:
    image = photolike(3, (320, 320))
    whole, crop = thumbnail(image)[None], thumbnail(image.crop((8, 8, 312, 312)))[None]

    one_way, other_way = similarity(whole, crop), similarity(crop, whole)

    assert one_way == other_way
    assert one_way > 0.8


def test_different_images_are_not_alike() -> None:
    thumbs = np.stack([thumbnail(photolike(seed)) for seed in range(30)])
    one, other = np.triu_indices(30, 1)

    assert similarity(thumbs[one], thumbs[other]).max() < 0.6
