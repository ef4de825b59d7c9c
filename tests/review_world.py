"""A small tree with something of each kind to review, and its manifests."""

from pathlib import Path

from photolike import encoded, photolike

from vit21k.near.leaks import find_leaks, find_near_duplicates
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel

BEAGLE, DOG, BANANA = "n02088364", "n02084071", "n07753592"


def make_world(base: Path) -> Path:
    """Write tree/, eval/ and m/ below *base*; return m/.

    There are two merges, a far one and one of a dog that is a beagle; a leak; and a near pair.
    """
    images = [encoded(photolike(seed), quality=90) for seed in range(4)]
    files = {
        f"tree/{BEAGLE}/0.jpg": images[0],
        f"tree/{DOG}/0.jpg": images[0],
        f"tree/{BEAGLE}/1.jpg": images[1],
        f"tree/{BANANA}/1.jpg": images[1],
        f"tree/{BANANA}/1_again.jpg": images[1],
        f"tree/{BANANA}/2.jpg": images[2],
        f"tree/{DOG}/2_again.jpg": encoded(photolike(2), quality=50),
        f"tree/{DOG}/3.jpg": images[3],
        "eval/3.jpg": encoded(photolike(3), quality=40),
    }
    for name, content in files.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(content)
    manifests = base / "m"
    hash_tree(base / "tree", manifests, num_workers=1)
    relabel(manifests)
    find_leaks(manifests, base / "eval", num_workers=1)
    find_near_duplicates(manifests, num_workers=1)
    return manifests
