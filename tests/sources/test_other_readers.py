"""Shards that webdataset writes: webdataset, timm and datasets read the same images and labels."""

import gc
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from vit21k.manifest.io import read_manifest
from vit21k.manifest.schema import DIGESTS, LOCATOR_COLUMNS
from vit21k.prep.hash_tree import hash_tree
from vit21k.sources.read import ImageReader

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")]

WNIDS = ("n01440764", "n01443537", "n01484850")
NUM_IMAGES = 9


def _image(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 90, 200)).save(file, "JPEG")
    return file.getvalue()


IMAGES = Counter((_image(number), number % 3) for number in range(NUM_IMAGES))


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[Path]:
    """Two shards with members as in timm/imagenet-22k-wds."""
    webdataset = pytest.importorskip("webdataset")
    root = tmp_path / "shards"
    root.mkdir()
    with webdataset.ShardWriter(f"{root}/x-train-%04d.tar", maxcount=5, verbose=0) as writer:
        for number in range(NUM_IMAGES):
            label = number % 3
            fields = {"label": label, "class_name": WNIDS[label], "width": 8, "height": 8}
            key = f"{WNIDS[label]}_{number}"
            writer.write({"__key__": key, "jpg": _image(number), "json": fields, "cls": label})
    names = [path.name for path in _tars(root)]
    split = {"name": "train", "filenames": names, "shard_lengths": [5, 4], "num_samples": 9}
    (root / "_info.json").write_text(json.dumps({"name": "x", "splits": {"train": split}}))
    yield root
    gc.collect()  # closes what webdataset leaves open


def _tars(root: Path) -> list[Path]:
    return sorted(root.glob("*.tar"))


def test_ours_gives_what_was_written(shards: Path, tmp_path: Path) -> None:
    hash_tree(shards, tmp_path / "m")

    reader = ImageReader(shards)
    rows = read_manifest(tmp_path / "m", DIGESTS, ["wnid", *LOCATOR_COLUMNS]).to_pylist()
    labels = [WNIDS.index(row.pop("wnid")) for row in rows]
    found = [reader.read(**row) for row in rows]
    assert Counter(zip(found, labels, strict=True)) == IMAGES


def test_webdataset_gives_the_same(shards: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    samples = webdataset.WebDataset([str(path) for path in _tars(shards)], shardshuffle=False)

    assert Counter((one["jpg"], int(one["cls"])) for one in samples) == IMAGES


def test_datasets_gives_the_same(shards: Path) -> None:
    datasets = pytest.importorskip("datasets", minversion="5.1")
    loaded = datasets.load_dataset(
        "webdataset",
        data_files={"train": [str(path) for path in _tars(shards)]},
        split="train",
        streaming=True,
    ).cast_column("jpg", datasets.Image(decode=False))

    assert Counter((one["jpg"]["bytes"], one["cls"]) for one in loaded) == IMAGES


def test_timm_gives_the_same_labels(shards: Path) -> None:
    dataset_factory = pytest.importorskip("timm.data.dataset_factory")
    samples = dataset_factory.create_dataset("wds/x", root=str(shards), split="train")

    assert Counter(label for _, label in samples) == Counter(label for _, label in IMAGES)
