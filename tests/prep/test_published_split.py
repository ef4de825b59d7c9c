"""Published splits: from folders into manifests, and from there into train and val."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from conftest import MakeTree
from typer.testing import CliRunner, Result

from vit21k.cli.app import app
from vit21k.errors import LayoutError, UsageError
from vit21k.manifest.io import open_manifest, read_manifest
from vit21k.manifest.schema import DIGESTS, IMAGES, PROBLEMS, TRAIN, VAL, ManifestKind
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.plsc import export_lists
from vit21k.prep.relabel import relabel
from vit21k.prep.shards import Shard, merge_shards
from vit21k.prep.split import make_val, split_by_list, split_by_source

FILES = {
    "train/cat/1.jpg": b"cat one",
    "train/cat/2.jpg": b"cat two",
    "train/dog/1.jpg": b"dog one",
    "train/dog/leak.jpg": b"in both",
    "train/dog/later.jpg": b"in train and test",
    "val/dog/leak.jpg": b"in both",
    "val/cat/3.jpg": b"cat three",
    "val/cat/both.jpg": b"cat and dog",
    "val/dog/both.jpg": b"cat and dog",
    "test/dog/later.jpg": b"in train and test",
    "test/dog/4.jpg": b"dog four",
    "extra/dog/5.jpg": b"dog five",
}


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"})


@pytest.fixture
def manifests(make_tree: MakeTree, tmp_path: Path) -> Path:
    hash_tree(make_tree(FILES), tmp_path / "manifests")
    relabel(tmp_path / "manifests")
    return tmp_path / "manifests"


def _paths(manifests: Path, kind: ManifestKind) -> list[str]:
    return sorted(read_manifest(manifests, kind, ["path"])["path"].to_pylist())


def _splits(manifests: Path) -> dict[str, str | None]:
    rows = read_manifest(manifests, DIGESTS)
    return dict(zip(rows["path"].to_pylist(), rows["source_split"].to_pylist(), strict=True))


def test_each_image_is_where_it_was_published_and_in_one_split_only(manifests: Path) -> None:
    summary = split_by_source(manifests)

    assert _paths(manifests, TRAIN) == ["train/cat/1.jpg", "train/cat/2.jpg", "train/dog/1.jpg"]
    assert _paths(manifests, VAL) == ["train/dog/leak.jpg", "val/cat/3.jpg"]
    assert (summary.num_train, summary.num_val, summary.val_split) == (3, 2, "validation")
    assert summary.num_several_labels == 1
    assert summary.num_held_out == 2
    assert summary.num_without == 1
    assert open_manifest(manifests, VAL).header.options["split"] == "holdout"


def test_doing_it_again_writes_the_same_bytes(manifests: Path) -> None:
    split_by_source(manifests)
    before = [(manifests / f"{name}.parquet").read_bytes() for name in ("train", "val")]

    split_by_source(manifests)

    assert [(manifests / f"{name}.parquet").read_bytes() for name in ("train", "val")] == before


def test_images_in_two_splits_are_counted_and_held_out(manifests: Path) -> None:
    result = _run("relabel", "--manifests", manifests, "--json")

    assert json.loads(result.stdout)["num_in_both"] == 2
    assert "2 images are in the published train split and in another one" in result.stderr
    images = read_manifest(manifests, IMAGES)
    splits = dict(zip(images["path"].to_pylist(), images["source_split"].to_pylist(), strict=True))
    assert splits["train/dog/leak.jpg"] == "validation"
    assert splits["test/dog/later.jpg"] == "test"


@pytest.mark.parametrize("use", [make_val, lambda m: export_lists(m, m.parent / "lists")])
def test_published_val_images_are_not_trained_on_by_default(use, manifests: Path) -> None:
    with pytest.raises(UsageError, match="5 images were published as validation or test") as caught:
        use(manifests)

    assert "--from-source" in (caught.value.hint or "")


def test_the_command_takes_the_published_split_or_all_images(manifests: Path) -> None:
    published = _run("make-val", "--manifests", manifests, "--from-source")
    ignored = _run("make-val", "--manifests", manifests, "--no-from-source", "--per-class", "1")
    both = _run("make-val", "--manifests", manifests, "--from-source", "--per-class", "1")

    assert "3 in train, 2 in val (the published validation split), 4 in neither" in published.stderr
    assert "9 images: 9 in train, 2 in val, 2 in both (a dummy split)" in ignored.stderr
    assert isinstance(both.exception, UsageError)


def test_the_next_command_takes_the_published_split(manifests: Path) -> None:
    relabelled = _run("relabel", "--manifests", manifests)
    status = _run("status", "--manifests", manifests)

    for result in (relabelled, status):
        assert f"next: `vit21k make-val --from-source --manifests {manifests}`" in result.stderr


def test_without_validation_the_test_split_is_taken(make_tree: MakeTree, tmp_path: Path) -> None:
    files = {path: content for path, content in FILES.items() if not path.startswith("val/")}
    hash_tree(make_tree(files), tmp_path / "m")
    relabel(tmp_path / "m")

    summary = split_by_source(tmp_path / "m")

    assert summary.val_split == "test"
    assert _paths(tmp_path / "m", VAL) == ["test/dog/4.jpg", "test/dog/later.jpg"]


def test_a_source_without_splits_has_none_to_take(make_tree: MakeTree, tmp_path: Path) -> None:
    hash_tree(make_tree({"cat/1.jpg": b"1", "dog/1.jpg": b"2"}), tmp_path / "m")
    relabel(tmp_path / "m")

    with pytest.raises(UsageError, match="no image is in one"):
        split_by_source(tmp_path / "m")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["train/n01440764/1.jpg", "val/n01440764/2.jpg"], ["train", "validation"]),
        (
            ["p_train/a/1.jpg", "p_val/a/2.jpg", "small/a/3.jpg"],
            ["train", "validation", None],
        ),
        (["a/b/Training/cat/1.jpg", "a/b/Test/cat/2.jpg"], ["test", "train"]),
        (["val/cat/1.jpg", "val/dog/2.jpg"], [None, None]),
        (["train_data/cat/1.jpg", "train_data/dog/2.jpg"], [None, None]),
    ],
)
def test_folders_are_splits_if_one_is_train_and_one_is_not(
    files: list[str], expected: list[str | None], make_tree: MakeTree, tmp_path: Path
) -> None:
    hash_tree(make_tree({path: path.encode() for path in files}), tmp_path / "m")

    assert list(_splits(tmp_path / "m").values()) == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/cat/1.jpg", "val/2.jpg"], "has no class folders|holds splits"),
        (["train/1.jpg", "test/2.jpg"], "holds splits"),
        (["train/cat/1.jpg", "val/cat/2.jpg", "dog/3.jpg"], "holds splits"),
        (["x/train/cat/1.jpg", "x/val/cat/2.jpg", "y/cat/1.jpg"], "holds splits|not clear"),
        (["2021/train/cat/1.jpg", "2022/val/cat/2.jpg"], "not clear"),
        (["train/a/val/cat/1.jpg", "val/a/train/cat/2.jpg"], "holds splits"),
        (["train/cat/2021/1.jpg", "val/dog/2022/2.jpg"], "not clear"),
    ],
)
def test_what_is_not_clear_is_refused(
    files: list[str], message: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    with pytest.raises(LayoutError, match=message):
        hash_tree(make_tree({path: path.encode() for path in files}), tmp_path / "m")
    assert not list((tmp_path / "m").glob("*.parquet"))


def test_shards_of_machines_keep_the_published_splits(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree(FILES)
    hash_tree(root, tmp_path / "whole")
    shards = [Shard(number, 3) for number in (1, 2, 3)]
    for shard in shards:
        hash_tree(root, tmp_path / "m", shard=shard)

    merge_shards([shard.folder(tmp_path / "m") for shard in shards], tmp_path / "m")

    assert _splits(tmp_path / "m") == _splits(tmp_path / "whole")


def test_a_flat_test_folder_has_no_classes(make_tree: MakeTree, tmp_path: Path) -> None:
    files = ["train/cat/1.jpg", "val/cat/2.jpg", "test/3.jpg"]

    summary = hash_tree(make_tree({path: path.encode() for path in files}), tmp_path / "m")

    assert summary.num_bad == 0
    assert list(_splits(tmp_path / "m")) == files[:2]
    problems = read_manifest(tmp_path / "m", PROBLEMS)
    assert problems["path"].to_pylist() == ["test/3.jpg"]
    assert problems["kind"].to_pylist() == ["unlabelled"]


def test_splits_in_a_tar_are_refused_unless_they_are_said(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    archive = tmp_path / "data" / "resized.tar"
    with tarfile.open(archive, "w") as file:
        for name in ("r/in_train/n01440764/1.jpg", "r/in_val/n01440764/2.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            file.addfile(member, io.BytesIO(name.encode()))

    refused = _run("hash", archive, "--manifests", tmp_path / "m")
    hashed = _run("hash", archive, "--manifests", tmp_path / "m", "--layout", "splits")

    assert isinstance(refused.exception, LayoutError)
    assert "--layout splits" in (refused.exception.hint or "")
    assert hashed.exit_code == 0
    assert list(_splits(tmp_path / "m").values()) == ["train", "validation"]


def test_tars_may_be_splits(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "val"):
        with tarfile.open(tmp_path / "data" / f"{split}.tar", "w") as file:
            member = tarfile.TarInfo("cat/1.jpg")
            member.size = len(split)
            file.addfile(member, io.BytesIO(split.encode()))

    hash_tree(tmp_path / "data", tmp_path / "m")

    assert _splits(tmp_path / "m") == {"train/cat/1.jpg": "train", "val/cat/1.jpg": "validation"}


def test_labels_of_a_file_keep_the_published_splits(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"train/1.jpg": b"1", "val/2.jpg": b"2"})
    (tmp_path / "labels.csv").write_text("1.jpg,cat\n2.jpg,dog\n")

    result = _run("hash", root, "--labels", tmp_path / "labels.csv", "--manifests", tmp_path / "m")

    assert (result.exit_code, list(_splits(tmp_path / "m").values())) == (
        0,
        ["train", "validation"],
    )


def _hex(manifests: Path, path: str) -> str:
    images = read_manifest(manifests, IMAGES)
    return images["digest"][images["path"].to_pylist().index(path)].as_py().hex()


def test_a_list_of_names_paths_stems_and_digests_is_val(manifests: Path, tmp_path: Path) -> None:
    names = ["train/cat/2.jpg", "both.jpg", "leak", _hex(manifests, "val/cat/3.jpg"), "9.jpg"]
    (tmp_path / "list.txt").write_text("\n".join(names))

    summary = split_by_list(manifests, tmp_path / "list.txt")

    assert _paths(manifests, VAL) == ["train/cat/2.jpg", "train/dog/leak.jpg", "val/cat/3.jpg"]
    assert _paths(manifests, TRAIN) == ["extra/dog/5.jpg", "train/cat/1.jpg", "train/dog/1.jpg"]
    assert summary.unmatched == ("9.jpg",)
    assert (summary.num_several_labels, summary.num_held_out, summary.num_names) == (1, 2, 5)


def test_the_command_lists_names_of_no_image(manifests: Path, tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text("filename,cls\ntrain/cat/2.jpg,cat\nother.jpg,dog\n")

    result = _run(
        "make-val", "--manifests", manifests, "--val-list", tmp_path / "val.csv", "--json"
    )

    assert result.exit_code == 3
    assert json.loads(result.stdout)["unmatched"] == ["other.jpg"]
    assert "1 names in" in result.stderr
    assert _paths(manifests, VAL) == ["train/cat/2.jpg"]


@pytest.mark.parametrize(
    ("names", "message"),
    [("1.jpg", "means several images"), ("x.jpg\ny.jpg", "none of the 2 names")],
)
def test_a_list_that_is_not_clear_is_refused(
    names: str, message: str, manifests: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text(names)

    with pytest.raises(UsageError, match=message):
        split_by_list(manifests, tmp_path / "list.txt")
    assert not (manifests / "val.parquet").exists()


def test_a_name_that_copies_share_is_clear(make_tree: MakeTree, tmp_path: Path) -> None:
    hash_tree(
        make_tree({"cat/1.jpg": b"1", "cat/2.jpg": b"2", "cat/x/1.jpg": b"1"}),
        tmp_path / "m",
        label_from="top",
    )
    relabel(tmp_path / "m")
    (tmp_path / "list.txt").write_text("1.jpg\n")

    assert split_by_list(tmp_path / "m", tmp_path / "list.txt").num_val == 1
