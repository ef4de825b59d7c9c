"""`vit21k get-dataset`, and `train --data` on folders and on a Hugging Face dataset."""

import hashlib
import io
import json
import shutil

import numpy as np
import pytest
from cifar_archives import cifar10_files, write_archive
from conftest import needs_extension
from file_server import serving
from PIL import Image
from small_run import SMALL as SIZES
from small_run import save_run
from table_files import parquet_of, table

from vit21k.manifest.io import read_manifest
from vit21k.manifest.schema import CLASSES, TRAIN, VAL


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path / "cifar-10-python.tar.gz", cifar10_files())


def test_an_archive_becomes_a_tree_and_manifests(vit21k, archive, tmp_path):
    result = vit21k("get-dataset", "cifar10", "--archive", archive)

    assert result.code == 0, result.stderr
    assert len(list((tmp_path / "cifar10/images/train").rglob("*.png"))) == 15
    train = read_manifest(tmp_path / "cifar10/manifests", TRAIN, ["path", "label_ids"])
    val = read_manifest(tmp_path / "cifar10/manifests", VAL, ["path"])
    assert (train.num_rows, val.num_rows) == (15, 3)
    assert all(path.startswith("test/") for path in val["path"].to_pylist())
    assert "18 files in `cifar10/images`" in result.stderr
    assert "15 images in train, 3 in val (the published test split)" in result.stderr
    assert "vit21k train --recipe cifar10_cpu --manifests cifar10/manifests" in result.stderr


def test_the_same_command_again_changes_nothing(vit21k, archive, tmp_path):
    vit21k("get-dataset", "cifar10", "--archive", archive)
    files = [p for p in (tmp_path / "cifar10").rglob("*.p*") if p.is_file()]
    before = {path: path.read_bytes() for path in files}

    result = vit21k("get-dataset", "cifar10", "--archive", archive, "--json")

    assert json.loads(result.stdout)["counts"] == {"train": 15, "test": 3}
    assert {path: path.read_bytes() for path in files} == before


def test_torchvision_loads_what_is_not_here_and_checks_it(vit21k, archive, tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    content = archive.read_bytes()
    with serving() as server:
        server.files["/c.tar.gz"] = content
        monkeypatch.setattr(datasets.CIFAR10, "url", f"{server.url}/c.tar.gz")
        monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
        first = vit21k("get-dataset", "cifar10", "--out", "a")
        num_requests = len(server.requests)
        second = vit21k("get-dataset", "cifar10", "--out", "a")
        monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", "0" * 32)
        third = vit21k("get-dataset", "cifar10", "--out", "b")
        assert len(server.requests) > num_requests

    assert (first.code, second.code) == (0, 0), first.stderr
    assert num_requests >= 1
    assert third.code == 3
    assert "is not the published file" in third.stderr
    assert not (tmp_path / "b" / "images").exists()


def test_another_archive_than_the_published_one_is_said_to_be_so(vit21k, archive):
    pytest.importorskip("torchvision")

    result = vit21k("get-dataset", "cifar10", "--archive", archive)

    assert "is not the published archive" in result.stderr


def test_an_archive_that_is_not_there_is_named(vit21k):
    result = vit21k("get-dataset", "cifar10", "--archive", "nowhere.tar.gz")

    assert result.code == 2
    assert "no archive at `nowhere.tar.gz`" in result.stderr


def photo(seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def finetune(vit21k, tmp_path, data):
    start = save_run(tmp_path / "start")
    fields = {f"model.{name}": value for name, value in SIZES.items()}
    fields |= {"data.global_batch_size": 4, "total_steps": 2, "schedule.warmup_steps": 0}
    return (
        "train",
        "--stage=finetune",
        "--recipe=tiny_finetune",
        "--device=cpu",
        f"--init={start}",
        f"--data={data}",
        "--run-dir=run",
        *(f"--set={name}={value}" for name, value in fields.items()),
    )


@pytest.fixture
def photos(tmp_path):
    pytest.importorskip("torch")
    for seed in range(14):
        path = tmp_path / "photos" / ("red fox", "owl")[seed % 2] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(seed))
    return tmp_path / "photos"


def test_any_folder_of_class_folders_is_trained_on_by_naming_it(vit21k, photos, tmp_path):
    before = sorted(photos.rglob("*"))
    command = finetune(vit21k, tmp_path, photos)

    result = vit21k(*command)
    again = vit21k(*command, "--set=run.log_every_steps=1")

    assert result.code == 0, result.stderr
    assert "12 images in train, 2 in val (1 of each class, held out)" in result.stderr
    assert "manifests in `run/data/manifests`" in result.stderr
    assert sorted(photos.rglob("*")) == before
    assert "val/prec@1" in (tmp_path / "run/metrics.jsonl").read_text()
    assert again.code == 0, again.stderr
    assert "resuming from step 2" in again.stderr


def test_images_that_a_run_did_not_begin_with_are_refused_and_its_manifests_stay(
    vit21k, photos, tmp_path
):
    command = finetune(vit21k, tmp_path, photos)
    assert vit21k(*command).code == 0
    manifests = tmp_path / "run/data/manifests"
    before = {path.name: path.read_bytes() for path in manifests.iterdir()}
    shutil.copytree(photos, tmp_path / "others")
    (tmp_path / "others/owl/1.png").write_bytes(photo(99))

    other = vit21k(*[f"--data={tmp_path / 'others'}" if "--data" in word else word
                     for word in command])  # fmt: skip
    same = vit21k(*command)
    (photos / "owl" / "new.png").write_bytes(photo(98))
    more = vit21k(*command)

    assert (other.code, same.code, more.code) == (3, 0, 3), (other, same, more)
    for result in (other, more):
        assert "`run` began with other images than" in result.stderr
        assert "--manifests run/data/manifests" in result.stderr
    assert {path.name: path.read_bytes() for path in manifests.iterdir()} == before
    assert sorted(path.name for path in (tmp_path / "run/data").iterdir()) == [".lock", "manifests"]


def test_a_dry_run_on_a_folder_leaves_nothing_behind(vit21k, photos, tmp_path):
    command = finetune(vit21k, tmp_path, photos)

    result = vit21k(*command, "--dry-run", "--rate=10", "--json")

    assert json.loads(result.stdout)["data"]["num_train_images"] == 12, result.stderr
    assert not (tmp_path / "run").exists()


def test_a_hugging_face_dataset_is_trained_on_by_naming_it(vit21k, tmp_path):
    pytest.importorskip("torch")
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    rows = {
        "image": [{"bytes": photo(seed), "path": None} for seed in range(10)],
        "label": [seed % 2 for seed in range(10)],
    }
    data = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=data.select(range(8)), test=data.select((8, 9))).save_to_disk(
        tmp_path / "saved"
    )

    result = vit21k(*finetune(vit21k, tmp_path, tmp_path / "saved"))

    assert result.code == 0, result.stderr
    assert "layout: Arrow, 2 files; class from the column `label`, which has 2 cl" in result.stderr
    assert "8 images in train, 2 in val (the published test split)" in result.stderr
    assert not (tmp_path / "run/data/pack").exists()  # trained on in place


def _parquet_files(folder):
    """Write compressed Parquet files of two splits, in which class 0 is not the first by name."""
    for split, seeds in (("train", range(8)), ("validation", range(8, 10))):
        images = [{"bytes": photo(seed), "path": None} for seed in seeds]
        rows = table([seed % 2 for seed in seeds], names=["dog", "cat"], images=images)
        folder.mkdir(exist_ok=True)
        file = parquet_of(rows, compression="zstd")
        (folder / f"{split}-00000-of-00001.parquet").write_bytes(file.getvalue())


def test_compressed_parquet_files_are_copied_once_to_be_trained_on(vit21k, tmp_path):
    pytest.importorskip("torch")
    _parquet_files(tmp_path / "hub")
    command = finetune(vit21k, tmp_path, tmp_path / "hub")

    first = vit21k(*command)
    shards = sorted((tmp_path / "run/data/pack").glob("*.tar"))
    before = [shard.stat().st_mtime_ns for shard in shards]
    again = vit21k(*command, "--fresh")

    assert (first.code, again.code) == (0, 0), (first.stderr, again.stderr)
    assert "10 images copied to `run/data/pack`" in first.stderr
    assert [shard.stat().st_mtime_ns for shard in shards] == before
    classes = read_manifest(tmp_path / "run/data/pack", CLASSES, ["wnid"])["wnid"]
    assert classes.to_pylist() == ["dog", "cat"]


@needs_extension
def test_compressed_parquet_files_are_not_trained_on_in_place(vit21k, tmp_path):
    pytest.importorskip("torch")
    _parquet_files(tmp_path / "hub")
    vit21k("hash", "hub", "--manifests=m")
    vit21k("relabel", "--manifests=m", "--classes=from-source")
    vit21k("make-val", "--manifests=m", "--from-source")

    command = ["train", "--recipe=tiny", "--manifests=m", "--run-dir=run", "--num-workers=1"]
    refused = vit21k(*command)

    assert refused.code == 3
    assert "a row group is decoded" in refused.stderr
    hint = "vit21k pack --lossless --manifests m --out m_pack"
    assert hint in refused.stderr
    packed = vit21k(*hint.split()[1:])
    assert packed.code == 0, packed.stderr
    assert read_manifest(tmp_path / "m_pack", CLASSES, ["wnid"])["wnid"].to_pylist()[0] == "dog"


def test_data_and_manifests_are_not_given_together(vit21k, photos, tmp_path):
    result = vit21k(*finetune(vit21k, tmp_path, photos), "--manifests=elsewhere")

    assert result.code == 2
    assert "--data replaces --manifests" in result.stderr
