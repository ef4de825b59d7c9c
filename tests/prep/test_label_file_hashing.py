"""`hash --labels FILE`: the classes of images in flat folders and flat archives."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from conftest import MakeTree
from typer.testing import CliRunner, Result

from vit21k.cli.app import app
from vit21k.errors import LayoutError, UsageError
from vit21k.manifest.io import read_manifest
from vit21k.manifest.schema import DIGESTS, IMAGES, PROBLEMS
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.shards import Shard, merge_shards
from vit21k.prep.verify import verify
from vit21k.sources.label_file import read_label_file

FILES = {f"ILSVRC2012_val_{number:08d}.JPEG": b"%d" % number for number in (1, 2, 4)}
WNIDS = "n01751748\nn09193705\nn02105855\n"
SUMMARY = "4 files scanned, 2 images in 2 classes (0.0 MB), 1 error, 1 skipped, 1 labels without"


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"})


def _classes(manifests: Path) -> dict[str, str]:
    rows = read_manifest(manifests, DIGESTS)
    return dict(zip(rows["path"].to_pylist(), rows["wnid"].to_pylist(), strict=True))


@pytest.mark.parametrize("folder", ["", "val/", "a/b/"])
def test_the_folders_of_the_images_do_not_matter(
    folder: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree({folder + name: content for name, content in FILES.items()})
    (root / "wnids.txt").write_text(WNIDS)
    manifests = tmp_path / "m"

    result = _run("hash", root, "--labels", root / "wnids.txt", "--manifests", manifests)

    assert result.exit_code == 3
    assert SUMMARY in result.stderr
    assert _classes(manifests) == {
        folder + "ILSVRC2012_val_00000001.JPEG": "n01751748",
        folder + "ILSVRC2012_val_00000002.JPEG": "n09193705",
    }
    problems = read_manifest(manifests, PROBLEMS)
    found = dict(zip(problems["kind"].to_pylist(), problems["path"].to_pylist(), strict=True))
    assert found == {
        "label_missing": folder + "ILSVRC2012_val_00000004.JPEG",
        "other_suffix": "wnids.txt",
        "file_missing": "ILSVRC2012_val_00000003",
    }
    assert verify(manifests).is_same


def _tar(path: Path) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("is_root", [True, False])
def test_a_flat_tar_is_read_as_a_folder_of_its_name(is_root: bool, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    archive = _tar(tmp_path / "tree" / "ILSVRC2012_img_val.tar")
    (tmp_path / "wnids.txt").write_text(WNIDS)
    root = archive if is_root else archive.parent

    result = _run("hash", root, "--labels", tmp_path / "wnids.txt", "--manifests", tmp_path / "m")

    assert result.exit_code == 3
    assert list(_classes(tmp_path / "m")) == [
        "ILSVRC2012_img_val/ILSVRC2012_val_00000001.JPEG",
        "ILSVRC2012_img_val/ILSVRC2012_val_00000002.JPEG",
    ]
    assert verify(tmp_path / "m").is_same
    rows = read_manifest(tmp_path / "m", DIGESTS)
    assert rows["container"].to_pylist() == ["ILSVRC2012_img_val.tar"] * 2


def test_numbers_keep_the_order_of_the_class_list(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"1.jpg": b"1", "2.jpg": b"2"})
    (tmp_path / "labels.json").write_text(json.dumps({"1.jpg": 0, "2.jpg": 1}))
    (tmp_path / "classes.txt").write_text("zebra\nant\n")
    arguments = ("hash", root, "--labels", tmp_path / "labels.json", "--manifests", tmp_path / "m")

    refused = _run(*arguments)
    hashed = _run(*arguments, "--classes", tmp_path / "classes.txt")
    relabelled = _run(*hashed.stderr.rpartition("next: `vit21k ")[2].strip("`\n").split())

    assert isinstance(refused.exception, LayoutError)
    assert (hashed.exit_code, relabelled.exit_code) == (0, 0)
    images = read_manifest(tmp_path / "m", IMAGES)
    assert images["path"].to_pylist() == ["1.jpg", "2.jpg"]
    assert images["label_ids"].to_pylist() == [[0], [1]]


def test_labels_of_other_images_are_refused(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"1.jpg": b"1"})
    (tmp_path / "labels.csv").write_text("x.jpg,cat\ny.jpg,dog\n")

    result = _run("hash", root, "--labels", tmp_path / "labels.csv", "--manifests", tmp_path / "m")

    assert isinstance(result.exception, LayoutError)
    assert "has labels of `x.jpg` and 1 more" in str(result.exception)
    assert not list((tmp_path / "m").glob("*.parquet"))


def _hash_shards(root: Path, labels: Path, manifests: Path) -> list[Path]:
    label_file = read_label_file(labels, root)
    shards = [Shard(number, 3) for number in (1, 2, 3)]
    for shard in shards:
        hash_tree(root, manifests, shard=shard, label_file=label_file)
        label_file = read_label_file(labels, root)
    return [shard.folder(manifests) for shard in shards]


def test_shards_of_a_labelled_tree_are_the_bytes_of_one_run(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    files = {f"{folder}/{number}.jpg": b"x" for folder in "abcdefgh" for number in (1, 2)}
    root = make_tree({**files, "c/3.jpg": b"", "d/4.jpg": b"y"})
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "".join(f"{name},{name[-5]}\n" for name in [*files, "a/gone.jpg", "c/3.jpg", "z.jpg"])
    )
    hash_tree(root, tmp_path / "m", label_file=read_label_file(labels, root))

    merge_shards(_hash_shards(root, labels, tmp_path / "n"), tmp_path / "n")

    problems = read_manifest(tmp_path / "n", PROBLEMS)["kind"].to_pylist()
    assert problems == ["empty", "label_missing", "file_missing", "file_missing"]
    for kind in (DIGESTS, PROBLEMS):
        assert (tmp_path / "n" / kind.file_name).read_bytes() == (
            tmp_path / "m" / kind.file_name
        ).read_bytes()


def test_a_name_of_images_in_several_shards_is_refused(make_tree: MakeTree, tmp_path: Path) -> None:
    folders = [next(f for f in "abcdefgh" if Shard(n, 3).has(f"{f}/".encode())) for n in (1, 3)]
    root = make_tree({f"{folder}/1.jpg": b"x" for folder in folders})
    labels = tmp_path / "labels.csv"
    labels.write_text("1.jpg,cat\n")

    with pytest.raises(LayoutError, match=r"a name in `labels.csv` may be an image of one shard"):
        merge_shards(_hash_shards(root, labels, tmp_path / "m"), tmp_path / "m")


@pytest.mark.parametrize(
    "options",
    [
        ("--labels", "labels.csv", "--label-from", "top"),
        ("--classes", "in1k"),
    ],
)
def test_options_that_contradict_a_label_file_are_refused(
    options: tuple[str, ...], make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text("1.jpg,cat\n")

    result = _run("hash", make_tree({"a/1.jpg": b"1"}), *options, "--manifests", "m")

    assert isinstance(result.exception, UsageError)
