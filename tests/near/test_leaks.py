"""Leaks and near-duplicates on real files: planted ones are found, and taken out."""

import errno
import io
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from photolike import encoded, photolike

from vit21k.data.dataset import ImageDataset
from vit21k.errors import ImageTreeError, ManifestError, UsageError
from vit21k.manifest.io import open_manifest, read_manifest
from vit21k.manifest.schema import FINGERPRINTS, IMAGES, LEAKS, NEAR_DUPLICATES, TRAIN
from vit21k.near import fingerprint as scan_module
from vit21k.near.fingerprint import scan_images
from vit21k.near.leaks import PairSummary, find_leaks, find_near_duplicates, remove_leaks
from vit21k.near.search import MatchLevel
from vit21k.near.sheet import PairImages
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val
from vit21k.sources import read as read_module

PLANTED = {0: "exact", 1: "pixel", 2: "near"}


def lay_out(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def manifests_of(root: Path, folder: Path, *, holdout: bool = False) -> Path:
    hash_tree(root, folder, num_workers=1)
    relabel(folder)
    make_val(folder, per_class=1, holdout=holdout)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with manifests, and test/: flat, with a leak of each level and a damaged file."""
    base = tmp_path_factory.mktemp("world")
    images = [photolike(seed) for seed in range(8)]
    train = {f"n0000000{seed % 2}/{seed}.png": encoded(images[seed], "PNG") for seed in range(6)}
    train["n00000001/damaged.jpg"] = b"\xff\xd8\xff no image"
    train["n00000001/again.jpg"] = encoded(images[4], quality=70)  # of n00000000/4.png
    test = {
        "0.png": train["n00000000/0.png"],
        "1.bmp": encoded(images[1], "BMP"),
        "2.jpg": encoded(images[2].resize((100, 75)), quality=60),
        "6.jpg": encoded(images[6]),
        "bad.jpg": b"nothing",
    }
    lay_out(base / "train", train)
    lay_out(base / "test", test)
    manifests_of(base / "train", base / "manifests")
    return base


@pytest.fixture(scope="module")
def leaks(world: Path) -> PairSummary:
    return find_leaks(world / "manifests", world / "test", num_workers=1)


def test_leaks_of_each_level_are_found_and_counts_add_up(leaks: PairSummary) -> None:
    assert leaks.num_pairs == leaks.num_found == leaks.num_others_found
    assert leaks.num_found == {"exact": 1, "pixel": 1, "near": 1}
    assert (leaks.num_images, leaks.num_others) == (8, 5)


def test_what_cannot_be_decoded_is_named(world: Path, leaks: PairSummary) -> None:
    prints = read_manifest(world / "manifests", FINGERPRINTS).to_pylist()

    assert leaks.num_problems == 1
    assert [row["problem"] is None for row in prints].count(False) == 1
    assert all((row["thumb"] is None) == (row["problem"] is not None) for row in prints)
    assert leaks.other_problems == {"bad.jpg": "it is not an image of a known format"}


def test_a_row_names_both_files_and_says_how_sure_it_is(world: Path, leaks: PairSummary) -> None:
    del leaks
    manifest = open_manifest(world / "manifests", LEAKS)

    rows = [(r["level"], r["path"], r["other_path"]) for r in manifest.read().to_pylist()]

    assert rows == [
        ("exact", "n00000000/0.png", "0.png"),
        ("pixel", "n00000001/1.png", "1.bmp"),
        ("near", "n00000000/2.png", "2.jpg"),
    ]
    assert manifest.header.options == {"against": str(world / "test")}
    assert all(0 <= r["distance"] <= 64 for r in manifest.read().to_pylist())


def test_both_images_of_a_pair_are_there_when_the_evaluation_set_is_in_archives(
    world: Path, tmp_path: Path
) -> None:
    image = (world / "test" / "2.jpg").read_bytes()
    (tmp_path / "val").mkdir()
    with tarfile.open(tmp_path / "val" / "n00000000.tar", "w") as archive:
        entry = tarfile.TarInfo("2.jpg")
        entry.size = len(image)
        archive.addfile(entry, io.BytesIO(image))
    hash_tree(tmp_path / "val", tmp_path / "of_val", num_workers=1)
    relabel(tmp_path / "of_val")
    ours = manifests_of(world / "train", tmp_path / "of_train")

    find_leaks(ours, tmp_path / "of_val", num_workers=1)

    pairs = PairImages(open_manifest(ours, LEAKS), root=None, max_pairs=9)
    assert [pairs.one(0), pairs.other(0)] == [
        (world / "train" / "n00000000" / "2.png").read_bytes(),
        image,
    ]


def test_the_same_inputs_give_the_same_bytes(world: Path, leaks: PairSummary) -> None:
    del leaks
    files = [world / "manifests" / kind.file_name for kind in (FINGERPRINTS, LEAKS)]
    before = [path.read_bytes() for path in files]
    files[0].unlink()

    find_leaks(world / "manifests", world / "test", num_workers=3)

    assert [path.read_bytes() for path in files] == before


def test_images_are_not_decoded_again_while_the_manifest_is_fresh(
    world: Path, leaks: PairSummary
) -> None:
    del leaks
    calls: list[int] = []

    find_near_duplicates(world / "manifests", on_images=lambda done, _total: calls.append(done))

    assert not calls


@pytest.mark.parametrize(("is_damaged", "expected"), [(False, [3, 2]), (True, [3, 3, 2])])
def test_a_run_that_is_killed_resumes(
    world: Path,
    leaks: PairSummary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_damaged: bool,
    expected: list[int],
) -> None:
    del leaks
    whole = (world / "manifests" / FINGERPRINTS.file_name).read_bytes()
    folder = tmp_path / "m"
    shutil.copytree(world / "manifests", folder)
    (folder / FINGERPRINTS.file_name).unlink()
    monkeypatch.setattr(scan_module, "PART_ROWS", 3)
    num_read: list[int] = []
    real_scan = scan_module.scan
    monkeypatch.setattr(
        scan_module,
        "scan",
        lambda read, num_rows, **options: (
            num_read.append(num_rows) or real_scan(read, num_rows, **options)
        ),
    )

    def stop(_done: int, _total: int) -> None:
        if len(num_read) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_images(folder, on_images=stop)
    (part,) = (folder / ".fingerprints").glob("*/fingerprints.parquet")
    if is_damaged:
        part.write_bytes(part.read_bytes()[:-20])
    scan_images(folder)

    assert num_read[2:] == expected  # what was kept whole is not read again
    assert (folder / FINGERPRINTS.file_name).read_bytes() == whole
    assert not (folder / ".fingerprints").exists()


def test_copies_within_the_set_are_found(world: Path) -> None:
    summary = find_near_duplicates(world / "manifests", num_workers=1)

    (row,) = read_manifest(world / "manifests", NEAR_DUPLICATES).to_pylist()
    assert {row["path"], row["other_path"]} == {"n00000000/4.png", "n00000001/again.jpg"}
    assert summary.num_pairs == {"exact": 0, "pixel": 0, "near": 1}
    assert summary.num_found == {"exact": 0, "pixel": 0, "near": 2}


@pytest.mark.parametrize(("level", "num_left"), [("exact", 7), ("pixel", 6), ("near", 5)])
def test_removal_takes_out_that_level_and_the_surer_ones(
    world: Path, leaks: PairSummary, tmp_path: Path, level: str, num_left: int
) -> None:
    del leaks
    before = (world / "manifests" / TRAIN.file_name).read_bytes()

    summary = remove_leaks(world / "manifests", MatchLevel(level), tmp_path)

    cleaned = open_manifest(tmp_path, TRAIN)
    assert summary.num_left == cleaned.num_rows == num_left
    assert cleaned.header.options["removed"]["level"] == level
    assert (world / "manifests" / TRAIN.file_name).read_bytes() == before
    assert (tmp_path / "val.parquet").is_file()


def test_removal_never_replaces_the_manifest_it_reads(world: Path, leaks: PairSummary) -> None:
    del leaks
    with pytest.raises(UsageError, match="must not replace"):
        remove_leaks(world / "manifests", MatchLevel.NEAR, world / "manifests")


def test_only_training_images_count(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    shutil.copytree(world / "manifests", folder)
    make_val(folder, per_class=1, holdout=True)  # takes n00000000/0.png, the exact leak

    summary = find_leaks(folder, world / "test", num_workers=1)

    assert summary.num_images == 6
    assert summary.num_found["exact"] == 0


def test_manifests_of_the_evaluation_set_do_as_well(
    world: Path, leaks: PairSummary, tmp_path: Path
) -> None:
    lay_out(tmp_path / "test", {f"x/{p.name}": p.read_bytes() for p in (world / "test").iterdir()})
    manifests = tmp_path / "test_manifests"
    hash_tree(tmp_path / "test", manifests, num_workers=1, label_from="folder")
    relabel(manifests)

    summary = find_leaks(world / "manifests", manifests, num_workers=1)

    assert summary.num_found == leaks.num_found
    assert summary.other_problems == {
        f"x/{path}": problem for path, problem in leaks.other_problems.items()
    }
    find_leaks(world / "manifests", world / "test", num_workers=1)  # as it was


def test_a_manifest_hashed_by_another_algorithm_is_refused(world: Path, tmp_path: Path) -> None:
    root = lay_out(tmp_path / "test", {"x/0.png": encoded(photolike(0), "PNG")})
    hash_tree(root, tmp_path / "m", algorithm="md5", num_workers=1, label_from="folder")
    relabel(tmp_path / "m")

    with pytest.raises(UsageError, match="hashed with md5"):
        find_leaks(world / "manifests", tmp_path / "m" / IMAGES.file_name, num_workers=1)


def test_the_image_root_is_not_its_own_evaluation_set(world: Path) -> None:
    with pytest.raises(UsageError, match="image root itself"):
        find_leaks(world / "manifests", world / "train", num_workers=1)


def test_links_in_the_evaluation_set_are_followed_and_broken_ones_named(
    world: Path, tmp_path: Path
) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "linked.png").symlink_to(world / "test" / "0.png")
    (tmp_path / "test" / "broken.png").symlink_to(tmp_path / "gone")

    summary = find_leaks(world / "manifests", tmp_path / "test", num_workers=1)

    assert (summary.num_others, summary.num_found["exact"]) == (1, 1)
    assert [(one.path, one.why.partition(":")[0]) for one in summary.other_skipped] == [
        ("broken.png", "broken symlink")
    ]
    assert not summary.is_complete
    find_leaks(world / "manifests", world / "test", num_workers=1)  # as it was


def test_a_folder_without_images_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageTreeError, match="no images below"):
        find_leaks(world / "manifests", tmp_path, num_workers=1)


def test_without_images_it_says_what_to_run_first(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        find_leaks(tmp_path, world / "test")

    assert caught.value.hint is not None
    assert "vit21k relabel" in caught.value.hint


def test_nothing_is_written_below_the_image_roots(world: Path, leaks: PairSummary) -> None:
    del leaks
    assert sorted(path.name for path in (world / "test").iterdir()) == [
        "0.png", "1.bmp", "2.jpg", "6.jpg", "bad.jpg",
    ]  # fmt: skip
    assert len([path for path in (world / "train").rglob("*") if path.is_file()]) == 8


@contextmanager
def away(*paths: Path) -> Iterator[None]:
    """Move files or folders away for a while, as if their disk was not mounted."""
    for path in paths:
        path.rename(path.with_name(f"{path.name}.away"))
    yield
    for path in paths:
        path.with_name(f"{path.name}.away").rename(path)


def test_what_could_not_be_read_is_listed_and_read_again_by_the_next_run(
    world: Path, tmp_path: Path
) -> None:
    ours = manifests_of(shutil.copytree(world / "train", tmp_path / "train"), tmp_path / "m")
    gone = tmp_path / "train" / "n00000000"

    with away(gone):
        first = find_leaks(ours, world / "test", num_workers=1)
        assert first.num_found == {"exact": 0, "pixel": 1, "near": 0}
        again = find_near_duplicates(ours, num_workers=1)

    assert first.unread == again.unread == {
        f"n00000000/{name}": "the file is not there" for name in ("0.png", "2.png", "4.png")
    }  # fmt: skip
    assert not first.is_complete
    assert first.num_problems == 1
    summary = find_leaks(ours, world / "test", num_workers=1)
    assert summary.num_found == {"exact": 1, "pixel": 1, "near": 1}
    assert summary.unread == {}
    straight = tmp_path / "straight"
    manifests_of(tmp_path / "train", straight)
    find_leaks(straight, world / "test", num_workers=1)
    for kind in (FINGERPRINTS, LEAKS):
        assert (ours / kind.file_name).read_bytes() == (straight / kind.file_name).read_bytes()


def test_a_part_of_a_killed_run_is_completed_too(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = manifests_of(shutil.copytree(world / "train", tmp_path / "train"), tmp_path / "m")
    monkeypatch.setattr(scan_module, "PART_ROWS", 3)

    with away(tmp_path / "train" / "n00000001" / "1.png"), monkeypatch.context() as patch:
        patch.setattr(scan_module.shutil, "rmtree", lambda *_args, **_options: None)
        scan_images(ours, num_workers=1)
    (ours / FINGERPRINTS.file_name).unlink()  # the parts are left

    assert scan_images(ours, num_workers=1).unread == {}
    assert read_manifest(ours, FINGERPRINTS)["digest"].null_count == 0


def test_a_reading_error_is_not_believed_at_once(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = manifests_of(world / "train", tmp_path / "m")
    failed: set[int] = set()
    read = ImageDataset.read_bytes

    def stale_at_first(images: ImageDataset, row: int) -> bytes:
        if row not in failed:
            failed.add(row)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(images, row)

    monkeypatch.setattr(ImageDataset, "read_bytes", stale_at_first)

    assert scan_images(ours, num_workers=1).unread == {}
    assert len(failed) == 8


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_an_error_of_the_disk_is_no_verdict_on_an_image(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    ours = manifests_of(world / "train", tmp_path / "m")
    read = ImageDataset.read_bytes

    def failing(images: ImageDataset, row: int) -> bytes:
        if images.path(row).endswith("/2.png"):
            raise OSError(code, os.strerror(code))
        return read(images, row)

    with monkeypatch.context() as patch:
        patch.setattr(ImageDataset, "read_bytes", failing)
        summary = scan_images(ours, num_workers=1)
    assert summary.unread == {"n00000000/2.png": os.strerror(code)}
    assert summary.num_problems == 1

    assert scan_images(ours, num_workers=1).unread == {}


def test_running_out_of_descriptors_is_not_the_images_fault(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = manifests_of(world / "train", tmp_path / "m")

    def failing(_images: ImageDataset, _row: int) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(ImageDataset, "read_bytes", failing)

    with pytest.raises(OSError, match="Too many open files"):
        scan_images(ours, num_workers=1)


def test_a_tree_that_is_gone_is_no_set_without_leaks(world: Path, tmp_path: Path) -> None:
    ours = manifests_of(shutil.copytree(world / "train", tmp_path / "train"), tmp_path / "m")

    with away(tmp_path / "train"):
        (tmp_path / "train").mkdir()
        with pytest.raises(ImageTreeError, match="8 images in a row could not be read below"):
            find_leaks(ours, world / "test", num_workers=1)
        (tmp_path / "train").rmdir()

    assert not (ours / FINGERPRINTS.file_name).exists()


def test_a_tree_that_goes_away_ends_the_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = manifests_of(shutil.copytree(world / "train", tmp_path / "train"), tmp_path / "m")
    monkeypatch.setattr(read_module, "MAX_UNREAD", 3)

    with (
        away(tmp_path / "train" / "n00000000"),
        pytest.raises(ImageTreeError, match="3 images in a row could not be read below"),
    ):
        scan_images(ours, num_workers=1)


def test_archives_in_the_evaluation_set_are_read(world: Path, tmp_path: Path) -> None:
    ours = manifests_of(world / "train", tmp_path / "m")
    content = (world / "test" / "0.png").read_bytes()
    (tmp_path / "test").mkdir()
    shutil.copy(world / "test" / "6.jpg", tmp_path / "test")
    with tarfile.open(tmp_path / "test" / "shard-0000.tar", "w") as archive:
        for name in ("0.png", "0.cls"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))

    summary = find_leaks(ours, tmp_path / "test", num_workers=1)

    assert (summary.num_others, summary.num_found["exact"]) == (2, 1)
    assert [tuple(one) for one in summary.other_skipped] == [
        ("shard-0000.tar", "1 members with other suffixes", False)
    ]
    assert summary.is_complete
    pairs = PairImages(open_manifest(ours, LEAKS), root=None, max_pairs=9)
    assert pairs.rows[0]["other_path"] == "shard-0000.tar/0.png"
    assert pairs.other(0) == content


def test_what_of_a_folder_is_not_looked_at_is_listed(world: Path, tmp_path: Path) -> None:
    ours = manifests_of(world / "train", tmp_path / "m")
    names = ["a.avif", "b.tar", "c.TGZ", "deep/d.zip", "notes.txt", "LICENSE", ".hidden/e.jpg"]
    lay_out(tmp_path / "test", dict.fromkeys(names, b"x"))
    shutil.copy(world / "test" / "6.jpg", tmp_path / "test" / "deep" / "6.jpg")

    summary = find_leaks(ours, tmp_path / "test", num_workers=1)

    assert summary.num_others == 1
    assert {one.path: (one.why, one.may_hold_images) for one in summary.other_skipped} == {
        "a.avif": ("another suffix", True),
        "b.tar": ("an archive that cannot be read", True),
        "c.TGZ": ("an archive that cannot be read", True),
        "deep/d.zip": ("an archive that cannot be read", True),
        "notes.txt": ("another suffix", False),
        "LICENSE": ("another suffix", False),
        ".hidden/": ("hidden", False),
    }
    assert not summary.is_complete
