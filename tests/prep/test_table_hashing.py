"""Sources of Parquet and Arrow files, from hashing to images with their classes."""

from pathlib import Path

import pyarrow as pa
import pytest
from table_files import arrow_of, content, parquet_of, table

from vit21k.errors import LayoutError
from vit21k.manifest.io import open_manifest, read_manifest
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import CLASSES, DIGESTS, IMAGES, LOCATOR_COLUMNS, PROBLEMS
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import classes_of_source, relabel
from vit21k.prep.verify import verify
from vit21k.sources import detect
from vit21k.sources.read import ImageReader

NAMES = ("tench", "crane", "shark", "crane")
DISTINCT = ["tench", "crane (1)", "shark", "crane (3)"]


def images(start: int, count: int) -> list[dict[str, object] | None]:
    return [{"bytes": content(start + i), "path": f"x_{start + i}.JPEG"} for i in range(count)]


def write(root: Path, files: dict[str, object]) -> Path:
    for name, file in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file if isinstance(file, bytes) else file.getvalue())
    return root


def problems(manifests: Path) -> list[tuple[str, str]]:
    rows = read_manifest(manifests, PROBLEMS).to_pylist()
    return [(row["path"], row["kind"]) for row in rows]


def labelled(manifests: Path) -> dict[bytes, list[str]]:
    """Return the classes of each image, by its bytes as its locator gives them."""
    relabel(manifests, classes=classes_of_source(manifests))
    names = read_manifest(manifests, CLASSES)["wnid"].to_pylist()
    reader = ImageReader(open_manifest(manifests, DIGESTS).header.root)
    rows = read_manifest(manifests, IMAGES)
    locators = rows.select(LOCATOR_COLUMNS).to_pylist()
    labels = rows["label_ids"].to_pylist()
    return {
        reader.read(**locator): [names[label] for label in ids]
        for locator, ids in zip(locators, labels, strict=True)
    }


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A dataset as it is pushed to the hub: shards of splits, the test split without labels."""
    return write(
        tmp_path / "hub",
        {
            "README.md": b"# A card",
            "data/train-00000-of-00002.parquet": parquet_of(
                table([0, 1, 2], names=NAMES, images=images(0, 3)), compression="none"
            ),
            "data/train-00001-of-00002.parquet": parquet_of(
                table([3, 0], names=NAMES, images=images(3, 2)), row_group_size=1
            ),
            "data/validation-00000-of-00001.parquet": parquet_of(
                table([2], names=NAMES, images=images(5, 1))
            ),
            "data/test-00000-of-00001.parquet": parquet_of(
                table([-1], names=NAMES, images=images(6, 1))
            ),
        },
    )


def test_a_dataset_of_the_hub_keeps_its_classes_their_order_and_its_splits(hub, tmp_path):
    manifests = tmp_path / "m"
    lines = []

    summary = hash_tree(hub, manifests, on_layout=lambda found: lines.append(found.line))

    assert lines == ["layout: Parquet, 4 files; class from the column `label`, which has 4 classes"]
    assert (summary.num_files, summary.num_bad) == (6, 0)
    assert labelled(manifests) == {
        content(i): [DISTINCT[label]] for i, label in enumerate([0, 1, 2, 3, 0, 2])
    }
    assert read_manifest(manifests, CLASSES)["wnid"].to_pylist() == DISTINCT
    splits = read_manifest(manifests, DIGESTS, ["source_split"])["source_split"].to_pylist()
    assert splits == ["train"] * 5 + ["validation"]
    path = "data/test-00000-of-00001.parquet/00000000/x_6.JPEG"
    assert (path, ProblemKind.UNLABELLED) in problems(manifests)
    found = verify(manifests)
    assert (found.num_same, found.num_missing, found.num_new) == (6, 0, 0)


def test_nothing_unchanged_is_read_again(hub, tmp_path):
    hash_tree(hub, tmp_path / "m", is_fresh=True)
    before = (tmp_path / "m" / DIGESTS.file_name).read_bytes()

    again = hash_tree(hub, tmp_path / "m")
    while not again.num_known:  # the clock has not moved on yet since the files were made
        again = hash_tree(hub, tmp_path / "m")

    assert again.num_known == 6
    assert (tmp_path / "m" / DIGESTS.file_name).read_bytes() == before


@pytest.mark.parametrize("root", ["", "default"])
def test_the_layout_of_converted_datasets_is_read(tmp_path, root):
    files = {
        f"default/{split}/0000.parquet": parquet_of(
            table([1, 0], names=["zebra", "ant"], images=images(i, 2))
        )
        for i, split in ((0, "partial-train"), (2, "validation"))
    }
    write(tmp_path / "refs", files)

    hash_tree(tmp_path / "refs" / root, tmp_path / "m")

    assert labelled(tmp_path / "m")[content(1)] == ["zebra"]
    assert read_manifest(tmp_path / "m", CLASSES)["wnid"].to_pylist() == ["zebra", "ant"]
    splits = read_manifest(tmp_path / "m", DIGESTS)["source_split"].to_pylist()
    assert splits == ["train"] * 2 + ["validation"] * 2


def test_a_single_file_is_a_source(hub, tmp_path):
    hash_tree(hub / "data" / "train-00000-of-00002.parquet", tmp_path / "m")

    paths = read_manifest(tmp_path / "m", DIGESTS)["path"].to_pylist()
    assert paths[0] == "train-00000-of-00002.parquet/00000000/x_0.JPEG"


def test_an_image_with_several_labels_has_all_of_them(tmp_path):
    rows = table([[0, 2], [1]], names=["cat", "dog", "sofa"])
    write(tmp_path / "s", {"train.parquet": parquet_of(rows)})

    hash_tree(tmp_path / "s", tmp_path / "m")

    assert labelled(tmp_path / "m") == {content(0): ["cat", "sofa"], content(1): ["dog"]}
    assert read_manifest(tmp_path / "m", IMAGES)["num_files"].to_pylist() == [2, 1]
    found = verify(tmp_path / "m")
    assert (found.num_same, found.num_missing, found.num_new) == (2, 0, 0)


def test_files_of_several_configurations_are_refused(tmp_path):
    files = {f"{name}/train/0.parquet": parquet_of(table([0], names=[name])) for name in ("a", "b")}
    with pytest.raises(LayoutError, match="the class names differ in `a/train/0"):
        hash_tree(write(tmp_path / "s", files), tmp_path / "m")


def test_files_may_store_images_in_different_ways(tmp_path):
    stored = pa.table({"image": [content(3)], "label": ["dog"]})
    large = stored.set_column(0, "image", stored["image"].cast(pa.large_binary()))
    files = {
        "0.parquet": parquet_of(table(["cat"], images=images(1, 1))),
        "1.parquet": parquet_of(stored),
        "2.parquet": parquet_of(large, compression="none"),
    }

    hash_tree(write(tmp_path / "s", files), tmp_path / "m")

    assert labelled(tmp_path / "m") == {content(1): ["cat"], content(3): ["dog"]}


def test_image_files_next_to_parquet_files_are_refused_unless_one_is_named(tmp_path):
    files = {"cat/1.jpg": content(9), "train.parquet": parquet_of(table([0], names=["dog"]))}
    root = write(tmp_path / "s", files)

    with pytest.raises(LayoutError, match="several layouts") as refused:
        hash_tree(root, tmp_path / "m")
    assert "--layout parquet" in refused.value.hint
    hash_tree(root, tmp_path / "m", layout="parquet")
    assert labelled(tmp_path / "m") == {content(0): ["dog"]}
    assert ("cat/1.jpg", ProblemKind.LABEL_MISSING) in problems(tmp_path / "m")
    hash_tree(root, tmp_path / "n", layout="folders", label_from="folder")
    assert read_manifest(tmp_path / "n", DIGESTS)["wnid"].to_pylist() == ["cat"]


def test_tables_without_images_do_not_count(tmp_path):
    listing = parquet_of(pa.table({"file_name": ["1.jpg"], "label": ["cat"]}))
    files = {"metadata.parquet": listing, "cat/1.jpg": content(1), "dog/2.jpg": content(2)}
    hash_tree(write(tmp_path / "folders", files), tmp_path / "m")
    assert read_manifest(tmp_path / "m", DIGESTS)["wnid"].to_pylist() == ["cat", "dog"]

    files = {"metadata.parquet": listing, "train.parquet": parquet_of(table(["owl"]))}
    hash_tree(write(tmp_path / "tables", files), tmp_path / "n")
    assert problems(tmp_path / "n") == [("metadata.parquet", ProblemKind.NOT_AN_IMAGE)]

    with pytest.raises(LayoutError) as refused:
        hash_tree(write(tmp_path / "none", {"metadata.parquet": listing}), tmp_path / "o")
    assert "--layout parquet" in refused.value.hint


def test_damaged_files_are_listed(tmp_path):
    whole = parquet_of(table([0, 1], names=["a", "b"])).getvalue()
    root = write(tmp_path / "s", {"0.parquet": whole, "1.parquet": whole[:-9], "2.parquet": b""})

    summary = hash_tree(root, tmp_path / "m")

    assert (summary.num_files, summary.num_bad) == (2, 2)
    assert [path for path, _ in problems(tmp_path / "m")] == ["1.parquet", "2.parquet"]
    only = hash_tree(write(tmp_path / "t", {"1.parquet": whole[:-9]}), tmp_path / "n")
    assert (only.num_files, only.num_bad) == (0, 1)


def test_a_file_with_other_columns_than_those_detected_is_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "_NUM_LOOKED_AT", 2)
    files = {f"{i}.parquet": parquet_of(table(["cat"], images=images(i, 1))) for i in range(3)}
    files["1.parquet"] = parquet_of(table(["cat"], label="kind"))
    root = write(tmp_path / "s", files)

    hash_tree(root, tmp_path / "m")

    assert problems(tmp_path / "m") == [("1.parquet", ProblemKind.LABEL_MISSING)]
    with pytest.raises(LayoutError, match="the column of labels, `label`, is not there"):
        hash_tree(root, tmp_path / "m", label_from="column:label")


def test_integers_are_named_by_a_class_list_or_the_dataset_card(tmp_path):
    numbers = parquet_of(table([1, 0]))
    root = write(tmp_path / "s", {"data/train-0.parquet": numbers})

    with pytest.raises(LayoutError, match="without class names"):
        hash_tree(root, tmp_path / "m")
    hash_tree(root, tmp_path / "m", class_names=["zebra", "ant"])
    assert labelled(tmp_path / "m") == {content(0): ["ant"], content(1): ["zebra"]}

    card = (
        b"---\ndataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n"
        b"        names:\n          '0': yak\n          '1': bee\n---\n"
    )
    write(root, {"README.md": card})
    hash_tree(root, tmp_path / "n")
    assert labelled(tmp_path / "n") == {content(0): ["bee"], content(1): ["yak"]}
    assert read_manifest(tmp_path / "n", CLASSES)["wnid"].to_pylist() == ["yak", "bee"]


def test_what_datasets_saves_is_hashed_in_place(tmp_path):
    files = {
        "dataset_dict.json": b'{"splits": ["train", "test"]}',
        "train/data-00000-of-00001.arrow": arrow_of(table([1, 0], names=["b", "a"])),
        "train/cache-1234.arrow": arrow_of(table([1, 0], names=["b", "a"])),
        "test/data-00000-of-00001.arrow": arrow_of(
            table([1], names=["b", "a"], images=images(7, 1))
        ),
    }
    hash_tree(write(tmp_path / "saved", files), tmp_path / "m")

    assert labelled(tmp_path / "m") == {content(7): ["a"], content(0): ["a"], content(1): ["b"]}
    splits = read_manifest(tmp_path / "m", DIGESTS)["source_split"].to_pylist()
    assert splits == ["test", "train", "train"]
    assert set(read_manifest(tmp_path / "m", DIGESTS)["storage"].to_pylist()) == {None}
