"""Training reads images in archives as it reads files: the same batches, the same order."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from malformed_images import encoded
from tar_files import tar_of_tars

from vit21k.data.dataset import ImageDataset
from vit21k.data.loader import EvalLoader, TrainLoader
from vit21k.data.sampler import StepSampler
from vit21k.data.transforms import EvalTransform, TrainTransform
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import TRAIN
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val

FOLDERS = {
    f"n{label}": {
        f"n{label}_{number}.JPEG": encoded(size=40 + 3 * label + number) for number in range(4)
    }
    for label in range(3)
}


def _images(root: Path, manifests: Path) -> ImageDataset:
    hash_tree(root, manifests)
    relabel(manifests)
    make_val(manifests, per_class=1)
    return ImageDataset.from_manifest(open_manifest(manifests, TRAIN))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageDataset, ImageDataset]:
    """The same images, as files and in a tar of tars."""
    folder = tmp_path_factory.mktemp("loading")
    for wnid, files in FOLDERS.items():
        for name, content in files.items():
            path = folder / "tree" / wnid / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    (folder / "packed").mkdir()
    (folder / "packed" / "whole.tar").write_bytes(tar_of_tars(FOLDERS))
    return (
        _images(folder / "tree", folder / "1"),
        _images(folder / "packed" / "whole.tar", folder / "2"),
    )


def _parts(batch: Iterable[object]) -> list[object]:
    return [part.tolist() if isinstance(part, torch.Tensor) else part for part in batch]


def test_evaluation_reads_the_same_batches(both: tuple[ImageDataset, ImageDataset]) -> None:
    files, members = (
        list(
            EvalLoader(
                images,
                EvalTransform(img_size=16, resize=18),
                device_batch_size=5,
                num_workers=3,
            )
        )
        for images in both
    )

    assert len(files) == len(members) > 1
    for one, other in zip(files, members, strict=True):
        assert _parts(one) == _parts(other)


def test_training_reads_the_same_batches(both: tuple[ImageDataset, ImageDataset]) -> None:
    def batches(images: ImageDataset) -> list[object]:
        sampler = StepSampler(len(images), global_batch_size=6, seed=1)
        loader = TrainLoader(
            images,
            sampler,
            TrainTransform(img_size=16),
            device_batch_size=3,
            num_workers=3,
            seed=1,
        )
        return [batch for step in range(4) for batch in loader.micro_batches(step)]

    files, members = (batches(images) for images in both)

    assert len(files) == len(members) > 1
    for one, other in zip(files, members, strict=True):
        assert _parts(one) == _parts(other)
