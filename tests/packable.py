"""An image tree with images of every kind that `pack` treats differently, and its manifests."""

from pathlib import Path

from photolike import encoded, photolike

from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val

NUM_PLAIN = 18
KINDS = {
    "n00000000/odd.name.JPEG": encoded(photolike(100, (70, 50))),
    "n00000001/png.JPEG": encoded(photolike(101, (60, 40)), "PNG"),
    "n00000001/progressive.JPEG": encoded(photolike(102, (64, 48)), progressive=True),
    "n00000002/cmyk.JPEG": encoded(photolike(103, (80, 56)).convert("CMYK")),
    "n00000002/grey.JPEG": encoded(photolike(104, (90, 40)).convert("L")),
}
BAD = {"n00000000/bad.JPEG": encoded(photolike(105, (60, 60)))[:900]}


def write_tree(root: Path, *, bad: bool = False) -> Path:
    """Write the tree; one image is in two classes."""
    files = dict(KINDS)
    for number in range(NUM_PLAIN):
        size = (120 + 9 * number, 90 + 5 * (number % 4))
        image = photolike(number, size)
        files[f"n0000000{number % 3}/{number:02}.JPEG"] = encoded(
            image, quality=60 + number, subsampling=("4:2:0", "4:4:4")[number % 2]
        )
    files["n00000001/copy.JPEG"] = files["n00000000/00.JPEG"]
    for name, content in (files | BAD if bad else files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_manifests(root: Path, manifests: Path, *, holdout: bool = False) -> Path:
    """Hash and split the tree."""
    hash_tree(root, manifests)
    relabel(manifests)
    make_val(manifests, per_class=2, holdout=holdout)
    return manifests
