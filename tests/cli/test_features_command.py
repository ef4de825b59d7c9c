"""`vit21k features`."""

import json

import pyarrow.parquet as pq
import pytest


def test_a_manifest_becomes_one_file_with_its_labels(vit21k, images, run_dir, tmp_path):
    manifest = ["--manifest", "data_manifests/val.parquet"]

    result = vit21k("features", run_dir, *manifest, "--out", "out/f.parquet", "--json")

    rows = pq.read_table(tmp_path / "out" / "f.parquet").to_pylist()
    assert result.code == 0
    assert [row["path"] for row in rows] == [row["path"] for row in images]
    assert [row["label_ids"] for row in rows] == [row["label_ids"] for row in images]
    assert {len(row["features"]) for row in rows} == {16}
    assert json.loads(result.stdout) == {
        "out": "out/f.parquet",
        "num_images": 6,
        "num_written": 6,
        "num_problems": 0,
        "num_resumed": 0,
        "skipped": [],
    }
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["f.parquet"]


def test_a_folder_of_shards_is_not_made_twice(vit21k, images, run_dir, tmp_path):
    (tmp_path / "tree" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    arguments = ["features", run_dir, "tree", "--shard-rows", 2, "--device-batch-size", 2]

    first = vit21k(*arguments, "--out", "f")
    again = vit21k(*arguments, "--out", "f")

    assert (first.code, again.code) == (3, 3)
    assert len(list((tmp_path / "f").glob("*.parquet"))) == 4
    assert "`tree/bad.jpg`: " in first.stderr
    assert "`tree/bad.jpg`: " in again.stderr
    assert "7 images: 6 written, 1 could not be read; `f`" in first.stderr
    assert "7 images (7 by an earlier run): 6 written" in again.stderr


def test_another_job_does_not_touch_the_folder(vit21k, images, run_dir):
    vit21k("features", run_dir, "tree", "--out", "f")

    result = vit21k("features", run_dir, "tree", "--out", "f", "--kind", "tokens")

    assert result.code == 2
    assert "holds other features: kind" in result.stderr


@pytest.mark.parametrize("arguments", [["nowhere", "tree"], ["runs/small"]])
def test_errors_leave_nothing_behind(vit21k, images, run_dir, tmp_path, arguments):
    result = vit21k("features", *arguments, "--out", "f")

    assert result.code in (2, 3)
    assert not (tmp_path / "f").exists()
