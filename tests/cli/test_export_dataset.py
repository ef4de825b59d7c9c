"""`vit21k export-dataset`: what it writes, opened by the libraries it is for."""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import needs_extra
from PIL import Image
from typer.testing import CliRunner, Result

from vit21k.cli.app import app
from vit21k.errors import DataError, UsageError
from vit21k.export import datasets as datasets_module
from vit21k.export.datasets import open_splits
from vit21k.manifest.api import read_manifest
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import IMAGES
from vit21k.manifest.writer import write_manifest

CLASSES = ("n01440764", "n02084071", "n02088364")


def _vit21k(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"})
    if result.exception:
        raise result.exception
    return result


def _jpeg(number: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (10 + number, 10), (number, 100, 50)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    for number in range(60):
        path = folder / "tree" / CLASSES[number % 3] / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_jpeg(number))
    (folder / "tree" / CLASSES[1] / "copy.JPEG").write_bytes(_jpeg(2))  # a beagle is a dog
    for command in (("hash", folder / "tree"), ("relabel",), ("make-val", "--per-class", 2)):
        _vit21k(*command, "--manifests", folder / "m")
    return folder / "m"


@pytest.fixture
def held_out(manifests: Path) -> Iterator[Path]:
    _vit21k("make-val", "--per-class", 2, "--holdout", "--manifests", manifests)
    yield manifests
    _vit21k("make-val", "--per-class", 2, "--manifests", manifests)


def _labels(manifests: Path, kind: str = "train") -> dict[str, list[int]]:
    rows = read_manifest(kind, manifests)
    return dict(zip(rows["path"].to_pylist(), rows["label_ids"].to_pylist(), strict=True))


def test_datasets_reads_paths_and_labels_of_both_splits(held_out: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    result = _vit21k(
        "export-dataset", "--to", "hf", "--manifests", held_out, "--out", tmp_path / "x"
    )

    rows = datasets.load_dataset(str(tmp_path / "x"), cache_dir=str(tmp_path / "cache"))

    assert "export-dataset: 54 in train, 6 in validation" in result.stderr
    assert list(rows) == ["train", "validation"]
    assert dict(zip(rows["train"]["path"], rows["train"]["labels"], strict=True)) == _labels(
        held_out
    )
    assert rows["validation"].features["labels"].feature.names == list(CLASSES)


def test_files_are_numbered_and_hold_as_many_rows_as_asked(manifests: Path, tmp_path: Path) -> None:
    splits = open_splits(manifests, tmp_path)

    files = datasets_module.write_hf(splits, tmp_path, rows_per_file=25)

    assert [path.name for path in files][:3] == [
        f"train-0000{number}-of-00003.parquet" for number in range(3)
    ]
    assert [pq.read_metadata(path).num_rows for path in files] == [25, 25, 10, 6]


def test_datasets_opens_images_through_the_link_with_their_labels(
    manifests: Path, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    _vit21k(
        *("export-dataset", "--to", "imagefolder", "--manifests", manifests),
        *("--out", tmp_path / "x"),
    )

    files = {
        name: str(tmp_path / "x" / name / "metadata.parquet") for name in ("train", "dummy_val")
    }
    rows = datasets.load_dataset("imagefolder", data_files=files, cache_dir=str(tmp_path / "cache"))
    whole = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "x"), cache_dir=str(tmp_path / "cache")
    )

    assert rows.num_rows == {"train": 60, "dummy_val": 6}
    assert rows["train"][:]["labels"] == list(_labels(manifests).values())
    assert rows["train"].features["labels"].feature.names == list(CLASSES)
    for row, path in zip(rows["train"], _labels(manifests), strict=True):
        with Image.open(manifests.parent / "tree" / path) as image:
            assert row["image"].size == image.size
            assert row["image"].getpixel((0, 0)) == image.getpixel((0, 0))
    assert whole["train"].num_rows == 60
    assert not any(path.is_file() for path in (tmp_path / "x").rglob("*.JPEG"))


@pytest.mark.filterwarnings("ignore")
def test_mlcroissant_finds_no_error_and_reads_the_records(manifests: Path, tmp_path: Path) -> None:
    mlcroissant = needs_extra("mlcroissant")
    _vit21k(
        *("export-dataset", "--to", "croissant", "--manifests", manifests),
        *("--out", tmp_path / "x"),
    )

    dataset = mlcroissant.Dataset(str(tmp_path / "x" / "croissant.json"))

    assert not dataset.metadata.ctx.issues.errors
    records = list(dataset.records("train"))
    assert {row["train/path"].decode(): row["train/labels"] for row in records} == _labels(
        manifests
    )
    assert [row["classes/wnid"].decode() for row in dataset.records("classes")] == list(CLASSES)
    assert len(list(dataset.records("dummy_val"))) == 6


@pytest.mark.filterwarnings("ignore")
def test_cleanlab_takes_the_labels_and_finds_the_wrong_one(manifests: Path, tmp_path: Path) -> None:
    needs_extra("cleanlab")
    from cleanlab.multilabel_classification.filter import find_label_issues  # noqa: PLC0415

    _vit21k(
        *("export-dataset", "--to", "cleanlab", "--manifests", manifests),
        *("--out", tmp_path / "x"),
    )
    labels = json.loads((tmp_path / "x" / "train_labels.json").read_text())
    paths = json.loads((tmp_path / "x" / "train_paths.json").read_text())
    pred_probs = np.full((len(labels), len(CLASSES)), 0.05)
    for row, label_ids in enumerate(labels):
        pred_probs[row, label_ids] = 0.95
    pred_probs[7] = [0.02, 0.02, 0.96] if labels[7] != [2] else [0.96, 0.02, 0.02]

    issues = find_label_issues(labels=labels, pred_probs=pred_probs, n_jobs=1)

    assert dict(zip(paths, labels, strict=True)) == _labels(manifests)
    assert np.flatnonzero(issues).tolist() == [7]


def test_plsc_lists_are_those_of_export_lists(manifests: Path, tmp_path: Path) -> None:
    _vit21k("export-dataset", "--to", "plsc", "--manifests", manifests, "--out", tmp_path / "x")
    _vit21k("export-lists", "--manifests", manifests, "--out", tmp_path / "y")

    for path in (tmp_path / "y").iterdir():
        assert (tmp_path / "x" / path.name).read_bytes() == path.read_bytes()


def test_the_same_manifests_give_the_same_bytes(manifests: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        _vit21k(
            *("export-dataset", "--to", "croissant", "--manifests", manifests),
            *("--out", tmp_path / name),
        )

    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_is_there_is_not_written_over_and_the_tree_never_written_to(
    manifests: Path, tmp_path: Path
) -> None:
    (tmp_path / "note.txt").touch()
    command = ("export-dataset", "--to", "hf", "--manifests", manifests, "--out")

    with pytest.raises(UsageError, match="is not empty"):
        _vit21k(*command, tmp_path)
    with pytest.raises(UsageError, match="inside the image root"):
        _vit21k(*command, manifests.parent / "tree" / "x")


def test_links_need_a_tree_and_files_outside_archives(manifests: Path, tmp_path: Path) -> None:
    images = open_manifest(manifests, IMAGES)
    rows = images.read()
    column = rows.schema.get_field_index("container")
    packed = rows.set_column(column, rows.schema.field(column), [["a.tar"] * rows.num_rows])
    write_manifest(packed, IMAGES, tmp_path / "packed", images.header, images.classes())
    command = ("export-dataset", "--to", "imagefolder", "--manifests")

    with pytest.raises(DataError, match="are in archives"):
        _vit21k(*command, tmp_path / "packed", "--out", tmp_path / "x")
    with pytest.raises(UsageError, match="is not a folder"):
        _vit21k(*command, manifests, "--out", tmp_path / "y", "--root", tmp_path / "nowhere")
