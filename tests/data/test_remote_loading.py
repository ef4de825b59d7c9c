"""`data.dataset` and `data.loader` over a URL: the batches of a disk, read ahead and cached."""

import random
from pathlib import Path
from typing import Any

import flaky_files
import numpy as np
import pytest
from conftest import needs_extra
from flaky_files import BackEndError, FlakyFiles, failing, short_answer
from object_server import running
from packable import write_manifests, write_tree

from vit21k.data.dataset import CacheOptions, ImageDataset
from vit21k.data.loader import EvalLoader, TrainLoader
from vit21k.data.sampler import StepSampler
from vit21k.data.transforms import EvalTransform, TrainTransform
from vit21k.errors import ImageError, ImageTreeError
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import TRAIN
from vit21k.pack.build import PackOptions
from vit21k.pack.build import pack as make_pack
from vit21k.pack.levels import Raw
from vit21k.sources import remote

STEPS = range(6)  # two epochs


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pack")
    manifests = write_manifests(write_tree(home / "tree"), home / "manifests")
    make_pack(manifests, home / "pack", Raw(48), PackOptions(per_shard=7))
    return home / "pack"


@pytest.fixture(autouse=True)
def url(pack: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The shards of the pack behind a URL."""
    monkeypatch.setattr(remote, "FIRST_DELAY_S", 0.0)
    flaky_files.start_flaky_files()
    return flaky_files.put({path.name: path.read_bytes() for path in pack.glob("*.tar")})


def dataset(pack: Path, root: str | None = None, **options: Any) -> ImageDataset:
    return ImageDataset.from_manifest(open_manifest(pack, TRAIN), root, **options)


def batches(images: ImageDataset, steps: Any = STEPS, **options: Any) -> list[list[Any]]:
    loader = TrainLoader(
        images,
        StepSampler(len(images), global_batch_size=7, seed=3, **options),
        TrainTransform(16),
        device_batch_size=4,
        num_workers=2,
        seed=3,
    )
    with loader:
        return [
            [part.tolist() for part in b[:5]] for step in steps for b in loader.micro_batches(step)
        ]


def num_reads() -> int:
    return sum(name == "cat_file" for name, *_ in FlakyFiles.requests)


def cache_in(folder: Path, max_bytes: int = 64 << 20, warnings: list[str] | None = None) -> Any:
    return CacheOptions(folder / "cache", max_bytes, ([] if warnings is None else warnings).append)


@pytest.mark.parametrize("repeats", [1, 3])
def test_batches_are_those_of_a_disk(pack: Path, url: str, repeats: int) -> None:
    assert batches(dataset(pack, url), repeats=repeats) == batches(dataset(pack), repeats=repeats)


def test_the_second_epoch_is_read_from_the_node(pack: Path, url: str, tmp_path: Path) -> None:
    images = dataset(pack, url, cache=cache_in(tmp_path))
    epoch = range(3)
    first = batches(images, epoch)
    assert 0 < num_reads() <= len(images)
    FlakyFiles.requests.clear()

    again = batches(images, epoch)
    other_process = batches(dataset(pack, url, cache=cache_in(tmp_path)), epoch)

    assert first == again == other_process == batches(dataset(pack), epoch)
    assert num_reads() == 0


def test_images_that_do_not_fit_are_read_again(pack: Path, url: str, tmp_path: Path) -> None:
    batches(dataset(pack, url, cache=cache_in(tmp_path, 1000)))
    FlakyFiles.requests.clear()

    assert batches(dataset(pack, url, cache=cache_in(tmp_path, 1000))) == batches(dataset(pack))
    assert num_reads() > 0


def test_errors_of_the_server_do_not_change_batches(pack: Path, url: str, tmp_path: Path) -> None:
    failing(5, BackEndError("500"), ".tar", "cat_file")
    failing(5, ConnectionResetError(104, "reset"), ".tar", "cat_file")
    short_answer(".tar", b"short")

    assert batches(dataset(pack, url, cache=cache_in(tmp_path))) == batches(dataset(pack))


def test_a_failing_server_does_not_change_batches(pack: Path, tmp_path: Path) -> None:
    needs_extra("aiohttp")
    drawn = random.Random(0)
    faults = ["500", "503", "reset", "short", *(None,) * 8]
    with running({path.name: path.read_bytes() for path in pack.glob("*.tar")}) as server:
        server.fault = lambda _method, _path: drawn.choice(faults)

        assert batches(dataset(pack, server.url, cache=cache_in(tmp_path))) == batches(
            dataset(pack)
        )


def test_evaluation_reads_neighbours_with_one_request(pack: Path, url: str) -> None:
    images = dataset(pack, url)
    with EvalLoader(images, EvalTransform(16), device_batch_size=50, num_workers=1) as loader:
        num_images = sum(len(batch.rows_B) for batch in loader)

    assert num_images == len(images)
    assert num_reads() == len(list(pack.glob("*train*.tar")))


def test_a_changed_shard_is_not_read_from_the_cache(pack: Path, url: str, tmp_path: Path) -> None:
    batches(dataset(pack, url, cache=cache_in(tmp_path)))
    FlakyFiles.requests.clear()
    shard = sorted(pack.glob("*.tar"))[0].name
    FlakyFiles.tags[f"{flaky_files.ROOT}/{shard}"] = "other"

    batches(dataset(pack, url, cache=cache_in(tmp_path)))

    assert num_reads() > 0


def test_a_cache_that_cannot_be_written_is_warned_about(
    pack: Path, url: str, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    warnings: list[str] = []

    images = dataset(pack, url, cache=cache_in(tmp_path, warnings=warnings))

    assert batches(images) == batches(dataset(pack))
    [warning] = warnings
    assert "cannot be used" in warning


def test_a_missing_or_short_shard_is_named(pack: Path, url: str) -> None:
    images = dataset(pack, url)
    name = images.locate(0).container
    content = FlakyFiles.store[f"{flaky_files.ROOT}/{name}"].getvalue()
    flaky_files.put({str(name): content[:600]})
    with pytest.raises(ImageError, match="ends before its member does"):
        images.read_bytes(0)

    del FlakyFiles.store[f"{flaky_files.ROOT}/{name}"]
    with pytest.raises(ImageError, match="is not there"):
        images.read_bytes(0)


def test_a_url_without_a_tree_is_refused(pack: Path) -> None:
    with pytest.raises(ImageTreeError, match="nothing is below"):
        dataset(pack, "flaky://bucket/nothing")


def test_images_that_are_announced_and_never_used_are_forgotten(pack: Path, url: str) -> None:
    images = dataset(pack, url)
    for _ in range(500):
        images.prefetch(np.arange(len(images)))

    assert images.read_bytes(0) == dataset(pack).read_bytes(0)
