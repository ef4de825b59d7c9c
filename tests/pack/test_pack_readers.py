"""Packs as webdataset, timm and Hugging Face read them: every image, with its labels."""

import io
import json

import numpy as np
import pytest
from packable import KINDS, NUM_PLAIN, write_manifests, write_tree

from vit21k.data.dataset import ImageDataset
from vit21k.data.decode import decode_rgb
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import TRAIN
from vit21k.pack.build import PackOptions, pack
from vit21k.pack.levels import Lossless, Raw

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries themselves


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("readers")
    write_manifests(write_tree(home / "tree"), home / "m", holdout=True)
    pack(home / "m", home / "raw", Raw(32), PackOptions(per_shard=6))
    return home


@pytest.fixture(scope="module")
def lossless_pack(home, native_extension):
    level = Lossless()
    pack(home / "m", home / "p", level, PackOptions(per_shard=6, num_workers=2))
    return home / "p"


@pytest.fixture(scope="module")
def expected(home):
    """Path -> (labels, pixels) of what is packed, from the files."""
    train = ImageDataset.from_manifest(open_manifest(home / "m", TRAIN))
    return {
        train.path(row): (train.label_ids(row), np.asarray(decode_rgb(train.read_bytes(row))))
        for row in range(len(train))
    }


def shards_of(folder, split="train"):
    return [str(path) for path in sorted(folder.glob(f"*-{split}-*.tar"))]


def test_webdataset_reads_every_image_with_its_labels(lossless_pack, expected):
    wds = pytest.importorskip("webdataset")
    dataset = wds.WebDataset(shards_of(lossless_pack), shardshuffle=False).decode("pil")

    seen = set()
    for sample in dataset:
        labels, pixels = expected[sample["json"]["filename"]]
        image = sample["jpg"] if "jpg" in sample else sample["png"]
        assert sample["cls"] == labels[0]
        assert sample["json"]["labels"] == labels
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels)
        seen.add(sample["json"]["filename"])

    assert seen == expected.keys()
    assert len(seen) == NUM_PLAIN + len(KINDS) - 6


def test_webdataset_decodes_raw_pixels(home):
    wds = pytest.importorskip("webdataset")
    dataset = wds.WebDataset(shards_of(home / "raw"), shardshuffle=False).decode("rgb8")

    shapes = [sample["ppm"].shape for sample in dataset]

    assert len(shapes) == NUM_PLAIN + len(KINDS) - 6
    assert all(min(shape[:2]) == 32 and shape[2] == 3 for shape in shapes)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_timm_reads_both_splits_by_the_info_file(lossless_pack, expected, split):
    create_dataset = pytest.importorskip("timm.data").create_dataset
    pytest.importorskip("webdataset")
    dataset = create_dataset(
        "wds/pack", root=str(lossless_pack), split=split, is_training=False, batch_size=1
    )

    samples = [(np.asarray(image), target) for image, target in dataset]

    labels = {(pixels.shape, labels[0]) for labels, pixels in expected.values()}
    info = json.loads((lossless_pack / "_info.json").read_text())
    assert len(dataset) == info["splits"][split]["num_samples"] == len(samples)
    if split == "train":
        assert {(pixels.shape, target) for pixels, target in samples} == labels


def test_timm_reads_raw_pixels(home):
    create_dataset = pytest.importorskip("timm.data").create_dataset
    pytest.importorskip("webdataset")
    dataset = create_dataset(
        "wds/pack", root=str(home / "raw"), split="train", batch_size=1, input_key="ppm;jpg"
    )

    sizes = [image.size for image, _ in dataset]

    assert len(sizes) == NUM_PLAIN + len(KINDS) - 6
    assert all(min(size) == 32 for size in sizes)


def test_hugging_face_datasets_reads_it(home, expected, tmp_path):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        "webdataset",
        data_files={"train": shards_of(home / "raw")},
        split="train",
        cache_dir=str(tmp_path),
    )

    labels = {row["json"]["filename"]: row["json"]["labels"] for row in loaded}

    assert labels == {path: labels for path, (labels, _) in expected.items()}
    image = loaded[0]["ppm"]
    image = image if hasattr(image, "size") else decode_rgb(io.BytesIO(image["bytes"]).read())
    assert min(image.size) == 32
