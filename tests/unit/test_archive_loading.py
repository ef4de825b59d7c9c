"""Training reads pictures in archives as it reads files: the same batches, the same order."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from malformed_images import encoded
from tar_files import tar_of_tars

torch = pytest.importorskip("torch")

from vit21k.data.loader import EvalLoader, TrainLoader  # noqa: E402
from vit21k.data.pictures import Pictures  # noqa: E402
from vit21k.data.sampler import StepSampler  # noqa: E402
from vit21k.data.transforms import EvalTransform, TrainTransform  # noqa: E402
from vit21k.hashing.hash_tree import hash_tree  # noqa: E402
from vit21k.manifest.reader import open_manifest  # noqa: E402
from vit21k.manifest.schema import TRAIN  # noqa: E402
from vit21k.prep.relabel import relabel  # noqa: E402
from vit21k.prep.split import make_val  # noqa: E402

FOLDERS = {
    f"n{label}": {
        f"n{label}_{number}.JPEG": encoded(size=40 + 3 * label + number) for number in range(4)
    }
    for label in range(3)
}


def _pictures(root: Path, manifests: Path) -> Pictures:
    hash_tree(root, manifests)
    relabel(manifests)
    make_val(manifests, per_class=1)
    return Pictures.from_manifest(open_manifest(manifests, TRAIN))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pictures, Pictures]:
    """The same pictures, as files and in a tar of tars."""
    folder = tmp_path_factory.mktemp("loading")
    for wnid, files in FOLDERS.items():
        for name, content in files.items():
            path = folder / "tree" / wnid / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    (folder / "packed").mkdir()
    (folder / "packed" / "whole.tar").write_bytes(tar_of_tars(FOLDERS))
    return (
        _pictures(folder / "tree", folder / "1"),
        _pictures(folder / "packed" / "whole.tar", folder / "2"),
    )


def _parts(batch: Iterable[object]) -> list[object]:
    return [part.tolist() if isinstance(part, torch.Tensor) else part for part in batch]


def test_evaluation_reads_the_same_batches(both: tuple[Pictures, Pictures]) -> None:
    files, members = (
        list(
            EvalLoader(
                pictures,
                EvalTransform(img_size=16, resize=18),
                device_batch_size=5,
                num_workers=3,
            )
        )
        for pictures in both
    )

    assert len(files) == len(members) > 1
    for one, other in zip(files, members, strict=True):
        assert _parts(one) == _parts(other)


def test_training_reads_the_same_batches(both: tuple[Pictures, Pictures]) -> None:
    def batches(pictures: Pictures) -> list[object]:
        sampler = StepSampler(len(pictures), global_batch_size=6, seed=1)
        loader = TrainLoader(
            pictures,
            sampler,
            TrainTransform(img_size=16),
            device_batch_size=3,
            num_workers=3,
            seed=1,
        )
        return [batch for step in range(4) for batch in loader.micro_batches(step)]

    files, members = (batches(pictures) for pictures in both)

    assert len(files) == len(members) > 1
    for one, other in zip(files, members, strict=True):
        assert _parts(one) == _parts(other)
