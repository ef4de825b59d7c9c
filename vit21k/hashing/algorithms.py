"""The digests that a manifest may hold, by name."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple, Protocol

import xxhash


class Hasher(Protocol):
    """What `hashlib` and `xxhash` give."""

    def update(self, content: memoryview, /) -> None:
        """Take in more content."""

    def digest(self) -> bytes:
        """Return the digest of all content so far."""


class Algorithm(NamedTuple):
    """A digest of 16 bytes.

    Attributes:
        at_once: Digest of content that is all there.
        piecewise: Makes a hasher for content that comes in pieces.
    """

    at_once: Callable[[memoryview], bytes]
    piecewise: Callable[[], Hasher]


def _md5() -> Hasher:
    return hashlib.md5(usedforsecurity=False)


def _blake2b() -> Hasher:
    return hashlib.blake2b(digest_size=16)


ALGORITHMS = {
    "xxh3_128": Algorithm(xxhash.xxh3_128_digest, xxhash.xxh3_128),
    "md5": Algorithm(lambda data: hashlib.md5(data, usedforsecurity=False).digest(), _md5),
    "blake2b_128": Algorithm(lambda data: hashlib.blake2b(data, digest_size=16).digest(), _blake2b),
}
"""By the name that is stored in the manifests.

At 14.2 million files the odds that any two different ones collide by chance are 3e-25 (128 bits).
xxh3_128 and md5 can be made to collide on purpose, blake2b_128 cannot.
"""
