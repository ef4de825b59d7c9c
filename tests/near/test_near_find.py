"""Pairs of images at three levels."""

from collections.abc import Callable

import numpy as np
import pytest
from photolike import encoded, photolike
from PIL import Image

from vit21k.near.fingerprint import FingerprintSet, fingerprint
from vit21k.near.search import MatchLevel, Pairs, find_pairs, num_views

NUM_IMAGES = 40


def as_set(contents: list[bytes]) -> FingerprintSet:
    prints = [fingerprint(content) for content in contents]
    return FingerprintSet(
        np.array([content[-16:] for content in contents], dtype="S16"),
        np.array([one.pixel_digest for one in prints], dtype="S16"),
        np.stack([one.thumb_TT for one in prints]),
    )


@pytest.fixture(scope="module")
def originals() -> list[Image.Image]:
    return [photolike(seed) for seed in range(NUM_IMAGES)]


@pytest.fixture(scope="module")
def original_set(originals: list[Image.Image]) -> FingerprintSet:
    return as_set([encoded(image, "PNG") for image in originals])


def levels(pairs: Pairs) -> list[str]:
    return [str(list(MatchLevel)[level]) for level in pairs.level_P]


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "encoded anew": lambda image: encoded(image, quality=30),
    "half the size": lambda image: encoded(image.resize((80, 60))),
    "twice the size": lambda image: encoded(image.resize((320, 240))),
    "cropped": lambda image: encoded(image.crop((4, 2, 156, 116))),
    "grey": lambda image: encoded(image.convert("L")),
    "mirrored": lambda image: encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES.keys())
def test_copies_are_found_and_nothing_else_is(
    originals: list[Image.Image], original_set: FingerprintSet, copy: Callable[[Image.Image], bytes]
) -> None:
    copies = as_set([copy(image) for image in originals])

    there, _ = find_pairs(original_set, copies)
    back, _ = find_pairs(copies, original_set)

    assert sorted(there.one_P.tolist()) == list(range(NUM_IMAGES))
    assert there.one_P.tolist() == there.other_P.tolist()
    assert sorted(back.one_P.tolist()) == list(range(NUM_IMAGES))
    assert set(levels(there)) == {"near"}


def test_the_first_level_that_is_true_counts(originals: list[Image.Image]) -> None:
    png = [encoded(image, "PNG") for image in originals[:3]]
    one = as_set(png)
    other = as_set([png[0], encoded(originals[1], "BMP"), encoded(originals[2], quality=80)])

    pairs, _ = find_pairs(one, other)

    assert pairs.one_P.tolist() == pairs.other_P.tolist() == [0, 1, 2]
    assert levels(pairs) == ["exact", "pixel", "near"]
    assert pairs.similarity_P[:2].tolist() == [1, 1]
    assert pairs.distance_P[:2].tolist() == [0, 0]


def test_within_a_set_each_pair_comes_once(originals: list[Image.Image]) -> None:
    contents = [encoded(image, quality=95) for image in originals[:5]]
    contents += [encoded(originals[3], quality=40), encoded(originals[3], quality=50)]

    pairs, _ = find_pairs(as_set(contents))

    found = sorted(zip(pairs.one_P.tolist(), pairs.other_P.tolist(), strict=True))
    assert found == [(3, 5), (3, 6), (5, 6)]


def test_flat_images_are_near_nothing_but_equal_where_they_are() -> None:
    white, grey = (encoded(Image.new("RGB", (30, 30), (v, v, v)), "PNG") for v in (255, 128))
    white_bmp = encoded(Image.new("RGB", (30, 30), (255, 255, 255)), "BMP")

    pairs, _ = find_pairs(as_set([white, grey, white_bmp]))

    assert levels(pairs) == ["pixel"]
    assert (pairs.one_P.tolist(), pairs.other_P.tolist()) == ([0], [2])


def test_images_that_cannot_be_decoded_pair_by_their_bytes_alone() -> None:
    blank = np.zeros((2, 32, 32), dtype=np.uint8)
    broken = FingerprintSet(np.array([b"a" * 16, b"b" * 16]), np.array([b"", b""], "S16"), blank)

    pairs, _ = find_pairs(broken, broken)

    assert levels(pairs) == ["exact", "exact"]


def test_each_view_is_reported(original_set: FingerprintSet) -> None:
    calls: list[None] = []

    find_pairs(original_set, on_view=lambda: calls.append(None))

    assert len(calls) == num_views(within=True)


def test_the_order_of_the_images_does_not_change_what_is_found(
    originals: list[Image.Image],
) -> None:
    contents = [encoded(image) for image in originals[:6]]
    contents += [encoded(image, quality=40) for image in originals[:6]]
    forward, _ = find_pairs(as_set(contents))
    backward, _ = find_pairs(as_set(contents[::-1]))

    there = set(zip(forward.one_P.tolist(), forward.other_P.tolist(), strict=True))
    back = zip((11 - backward.other_P).tolist(), (11 - backward.one_P).tolist(), strict=True)
    assert there == set(back)
    assert len(there) == 6
