"""A pack: the same images, labels and order, whoever reads it and however it was made."""

import io
import json
import resource
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import xxhash
from packable import BAD, KINDS, NUM_PLAIN, write_manifests, write_tree
from PIL import Image

from vit21k.data.dataset import ImageDataset
from vit21k.data.decode import decode_rgb
from vit21k.errors import ImageTreeError, ManifestError, UsageError
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import PACKED, SKIPPED, TRAIN, VAL
from vit21k.manifest.writer import write_manifest
from vit21k.pack.build import PackOptions, pack
from vit21k.pack.levels import Lossless, Raw, Resized
from vit21k.pack.plan import PackPlan
from vit21k.pack.shards import member_header, sample_key
from vit21k.pack.verify import decode_pack, verify_pack
from vit21k.sources import read

NUM_IMAGES = NUM_PLAIN + len(KINDS)
LEVELS = ("lossless", "short side", "raw")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("pack")
    write_manifests(write_tree(home / "tree"), home / "m")
    write_manifests(home / "tree", home / "held", holdout=True)
    return home


@pytest.fixture(scope="module")
def lossless(native_extension):
    return Lossless()


class Packs:
    """A pack of each level, in shards of seven, made when it is first asked for."""

    def __init__(self, home, request):
        self._home, self._request = home, request

    def __getitem__(self, name):
        out, level = self._home / name, Raw(64)
        if name != "raw":
            level = self._request.getfixturevalue("lossless")
        if name == "short side":
            level = Resized(64, 90)
        if not out.exists():
            pack(self._home / "m", out, level, PackOptions(per_shard=7, num_workers=2))
        return out


@pytest.fixture(scope="module")
def packs(home, request):
    return Packs(home, request)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def images_of(folder, kind=TRAIN):
    return ImageDataset.from_manifest(open_manifest(folder, kind))


def every(images):
    return [(images.path(row), images.label_ids(row)) for row in range(len(images))]


@pytest.mark.parametrize("kind", [TRAIN, VAL], ids=["train", "val"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_pack_has_the_images_and_labels_of_its_manifests_in_their_order(home, packs, level, kind):
    assert every(images_of(packs[level], kind)) == every(images_of(home / "m", kind))


def test_a_lossless_pack_has_the_pixels_of_the_files(home, packs):
    files, packed = images_of(home / "m"), images_of(packs["lossless"])

    for row in range(len(files)):
        before, after = decode_rgb(files.read_bytes(row)), decode_rgb(packed.read_bytes(row))
        assert np.array_equal(np.asarray(before), np.asarray(after))


@pytest.mark.parametrize("level", ["short side", "raw"])
def test_large_images_get_the_short_side_and_small_ones_stay(home, packs, level):
    files, packed = images_of(home / "m"), images_of(packs[level])

    for row in range(len(files)):
        before, after = decode_rgb(files.read_bytes(row)), decode_rgb(packed.read_bytes(row))
        assert min(after.size) == min(64, *before.size)
        wanted = before.resize(after.size, Image.Resampling.BICUBIC)
        off = np.abs(np.asarray(wanted, dtype=float) - np.asarray(after)).mean()
        assert off == 0 if level == "raw" else off < 8


def test_what_cannot_be_tiled_goes_in_as_it_is_and_the_index_says_why(home, packs):
    index = open_manifest(packs["lossless"], PACKED).read().to_pylist()
    as_is = {row["path"]: row["note"] for row in index if row["form"] == "as_is"}
    files = images_of(home / "m")
    packed = images_of(packs["lossless"])
    rows = [row for row in range(len(files)) if files.path(row) in as_is]

    assert as_is == {
        "n00000001/png.JPEG": "not a JPEG",
        "n00000001/progressive.JPEG": "progressive",
    }
    assert all(files.read_bytes(row) == packed.read_bytes(row) for row in rows)
    assert sum(row["form"] == "tiles" for row in index) == NUM_IMAGES - 2


def test_the_bytes_do_not_depend_on_the_number_of_workers(lossless, home, packs, tmp_path):
    for num_workers in (1, 4):
        out = tmp_path / str(num_workers)
        pack(home / "m", out, lossless, PackOptions(per_shard=7, num_workers=num_workers))

        assert files_of(out) == files_of(packs["lossless"])


def test_members_are_as_tar_and_webdataset_have_them(packs):
    index = {row["key"]: row for row in open_manifest(packs["lossless"], PACKED).read().to_pylist()}
    train = images_of(packs["lossless"])
    labels = {train.path(row): train.label_ids(row) for row in range(len(train))}
    seen = set()
    for shard in sorted(packs["lossless"].glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
            for image, first, fields in zip(*(iter(members),) * 3, strict=True):
                key, suffix = image.name.split(".")
                row = index[key]
                assert first.name == f"{key}.cls"
                assert fields.name == f"{key}.json"
                assert (row["container"], row["offset"]) == (shard.name, image.offset_data)
                assert suffix == ("png" if "png" in key else "jpg")
                said = json.loads(tar.extractfile(fields).read())
                assert said["filename"] == row["path"]
                assert said["labels"] == labels[row["path"]]
                assert said["wnids"] == [f"n0000000{label}" for label in said["labels"]]
                assert tar.extractfile(first).read() == b"%d" % said["labels"][0]
                seen.add(key)
    assert seen == index.keys()
    assert any(len(each) == 2 for each in labels.values())


def test_a_held_out_val_has_shards_of_its_own(home, tmp_path):
    summary = pack(home / "held", tmp_path / "p", Raw(16), PackOptions())

    info = json.loads((tmp_path / "p" / "_info.json").read_text())
    assert {name: split["num_samples"] for name, split in info["splits"].items()} == {
        "train": NUM_IMAGES - 6,
        "validation": 6,
    }
    assert summary.num_shards == 2
    assert every(images_of(tmp_path / "p", VAL)) == every(images_of(home / "held", VAL))


def test_the_order_is_shuffled_unless_it_is_to_be_kept(home, tmp_path):
    def order(name, seed):
        pack(home / "m", tmp_path / name, Raw(8), PackOptions(seed=seed))
        return open_manifest(tmp_path / name, PACKED).read(["path"])["path"].to_pylist()

    kept, shuffled, other = order("kept", None), order("0", 0), order("1", 1)

    assert kept == [path for path, _ in every(images_of(home / "m"))]
    assert shuffled not in (kept, other)
    assert sorted(shuffled) == sorted(kept) == sorted(other)


def test_a_pack_may_be_moved(packs, tmp_path):
    before = list(_contents(packs["lossless"]))
    shutil.copytree(packs["lossless"], tmp_path / "elsewhere")
    moved = images_of(tmp_path / "elsewhere")

    assert moved.root == str(tmp_path / "elsewhere")
    assert list(_contents(tmp_path / "elsewhere")) == before


def _contents(folder):
    images = images_of(folder)
    return (images.read_bytes(row) for row in range(len(images)))


def test_images_without_a_split_are_packed_as_images(home, tmp_path):
    manifests = tmp_path / "m"
    shutil.copytree(home / "m", manifests)
    for kind in (TRAIN, VAL):
        (manifests / kind.file_name).unlink()

    summary = pack(manifests, tmp_path / "p", Raw(8), PackOptions())

    assert not summary.has_val
    assert (tmp_path / "p" / "images.parquet").is_file()
    assert verify_pack(tmp_path / "p").is_same


def test_bad_images_are_skipped_listed_and_counted(lossless, tmp_path):
    write_manifests(write_tree(tmp_path / "tree", bad=True), tmp_path / "m")
    (tmp_path / "tree" / "n00000002" / "08.JPEG").unlink()

    summary = pack(tmp_path / "m", tmp_path / "p", lossless, PackOptions(per_shard=7))

    skipped = open_manifest(tmp_path / "p", SKIPPED).read().to_pylist()
    assert {row["path"]: row["kind"] for row in skipped} == {
        next(iter(BAD)): "truncated_image",
        "n00000002/08.JPEG": "vanished",
    }
    assert summary.num_skipped == 2
    assert summary.skipped == {"truncated_image": 1, "vanished": 1}
    assert summary.num_images == sum(summary.forms.values()) + 2 == NUM_IMAGES + 1
    assert len(images_of(tmp_path / "p")) == NUM_IMAGES - 1
    assert verify_pack(tmp_path / "p").num_same == NUM_IMAGES - 1


def test_an_image_too_long_for_a_jpeg_is_kept_as_it_is(lossless, tmp_path):
    long = Path(__file__).parents[1] / "fixtures" / "images" / "png_70000x4.png"
    root = write_tree(tmp_path / "tree")
    shutil.copy(long, root / "n00000001" / "long.png")
    write_manifests(root, tmp_path / "m")

    summary = pack(tmp_path / "m", tmp_path / "p", Resized(64, 90), PackOptions(per_shard=99))

    index = open_manifest(tmp_path / "p", PACKED).read().to_pylist()
    (row,) = [row for row in index if row["path"] == "n00000001/long.png"]
    assert (row["form"], row["width"], row["height"]) == ("as_is", 70_000, 4)
    assert row["note"] == "a side of 70,000 pixels is too long for a JPEG"
    assert row["packed_digest"] == xxhash.xxh3_128_digest(long.read_bytes())
    assert summary.num_skipped == 0


def test_an_error_while_an_image_is_encoded_is_that_images_problem(lossless, tmp_path):
    """An encoder's OSError is not one of the disk, and must not end the run without a path."""
    write_manifests(write_tree(tmp_path / "tree"), tmp_path / "m")

    class Failing(Lossless):
        def __call__(self, content):
            if content == KINDS["n00000001/png.JPEG"]:
                raise OSError("encoder error -2")
            return super().__call__(content)

    pack(tmp_path / "m", tmp_path / "p", Failing(), PackOptions(per_shard=99))

    (row,) = open_manifest(tmp_path / "p", SKIPPED).read().to_pylist()
    assert (row["path"], row["kind"]) == ("n00000001/png.JPEG", "damaged_image")
    assert row["detail"] == "it cannot be packed: encoder error -2"


def test_an_image_that_could_not_be_read_is_packed_by_the_next_run(lossless, home, packs, tmp_path):
    tree = shutil.copytree(home / "tree", tmp_path / "tree")
    away = tree / "n00000002" / "08.JPEG"
    away.rename(tmp_path / "away")

    summary = pack(home / "m", tmp_path / "p", lossless, PackOptions(per_shard=7), root=tree)
    assert summary.skipped == {"vanished": 1}
    (tmp_path / "away").rename(away)
    summary = pack(home / "m", tmp_path / "p", lossless, PackOptions(per_shard=7), root=tree)

    assert (summary.num_skipped, summary.num_shards - summary.num_shards_kept) == (0, 1)
    assert files_of(tmp_path / "p") == files_of(packs["lossless"])


def test_a_tree_that_is_gone_is_no_pack_of_nothing(lossless, home, packs, tmp_path):
    (tmp_path / "not mounted").mkdir()
    options = PackOptions(per_shard=7)
    with pytest.raises(ImageTreeError, match="23 images in a row could not be read below"):
        pack(home / "m", tmp_path / "p", lossless, options, root=tmp_path / "not mounted")

    pack(home / "m", tmp_path / "p", lossless, options, root=home / "tree")

    assert files_of(tmp_path / "p") == files_of(packs["lossless"])


def test_a_tree_that_goes_away_during_the_run_stops_it(
    lossless, home, packs, tmp_path, monkeypatch
):
    monkeypatch.setattr(read, "MAX_UNREAD", 2)
    tree = tmp_path / "tree"
    shutil.copytree(home / "tree", tree)
    options = PackOptions(per_shard=7, num_workers=1)
    done = []

    def unmount(_num_bytes, _is_skipped):
        done.append(1)
        if len(done) == 15:  # four more are under way
            tree.rename(tmp_path / "away")
            tree.mkdir()

    with pytest.raises(ImageTreeError, match="2 images in a row could not be read"):
        pack(home / "m", tmp_path / "p", lossless, options, root=tree, on_image=unmount)
    tree.rmdir()
    (tmp_path / "away").rename(tree)
    summary = pack(home / "m", tmp_path / "p", lossless, options, root=tree)

    assert (summary.num_shards_kept, summary.num_skipped) == (2, 0)
    assert files_of(tmp_path / "p") == files_of(packs["lossless"])


def test_a_finished_pack_is_left_as_it_is(home, packs):
    before = {path: path.stat().st_mtime_ns for path in packs["raw"].glob("[!.]*")}

    summary = pack(home / "m", packs["raw"], Raw(64), PackOptions(per_shard=7))

    assert summary.num_shards_kept == summary.num_shards == 4
    assert {path: path.stat().st_mtime_ns for path in packs["raw"].glob("[!.]*")} == before


def test_finished_shards_are_kept_by_the_next_run(lossless, home, packs, tmp_path, monkeypatch):
    def stop_at(wanted):
        done = []

        def on_image(_num_bytes, _is_skipped):
            done.append(1)
            if len(done) == wanted:
                raise KeyboardInterrupt

        return on_image

    out = tmp_path / "p"
    with pytest.raises(KeyboardInterrupt):
        pack(
            home / "m", out, lossless, PackOptions(per_shard=7, num_workers=2),
            on_image=stop_at(18),
        )  # fmt: skip
    num_left = []
    summary = pack(home / "m", out, lossless, PackOptions(per_shard=7), on_start=num_left.append)

    assert num_left == [NUM_IMAGES - 14]
    assert summary.num_shards_kept == 2
    assert files_of(out) == files_of(packs["lossless"])


def test_a_shard_that_was_cut_short_is_made_again(lossless, home, packs, tmp_path):
    out = tmp_path / "p"
    with pytest.raises(KeyboardInterrupt):
        pack(
            home / "m", out, lossless, PackOptions(per_shard=7),
            on_image=_interrupt_after(20),
        )  # fmt: skip
    shard = sorted(out.glob("*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:-512])

    pack(home / "m", out, lossless, PackOptions(per_shard=7))

    assert files_of(out) == files_of(packs["lossless"])


@pytest.mark.parametrize(
    "damage", [lambda old: old[:-40], lambda _old: b"", lambda _old: b"x" * 99]
)
def test_a_shard_whose_part_is_damaged_is_made_again(lossless, home, packs, tmp_path, damage):
    out = tmp_path / "p"
    with pytest.raises(KeyboardInterrupt):
        pack(
            home / "m", out, lossless, PackOptions(per_shard=7),
            on_image=_interrupt_after(20),
        )  # fmt: skip
    part = sorted((out / ".parts").glob("*.parquet"))[1]
    part.write_bytes(damage(part.read_bytes()))

    summary = pack(home / "m", out, lossless, PackOptions(per_shard=7))

    assert summary.num_shards_kept == 1
    assert files_of(out) == files_of(packs["lossless"])


def test_a_run_that_cannot_begin_is_in_nobodys_way(lossless, home, packs, tmp_path):
    out = tmp_path / "p"
    with pytest.raises(ImageTreeError, match="not a folder"):
        pack(home / "m", out, Raw(64), PackOptions(), root=tmp_path / "moved")

    pack(home / "m", out, lossless, PackOptions(per_shard=7))

    assert files_of(out) == files_of(packs["lossless"])


def test_a_dummy_val_that_is_not_in_train_is_refused(home, tmp_path):
    shutil.copytree(home / "m", tmp_path / "m")
    train = open_manifest(home / "m", TRAIN)
    header = replace(train.header, inputs={})
    first = open_manifest(home / "m", VAL).read()["path"][0]
    rows = train.read().filter(pc.not_equal(train.read()["path"], first))
    write_manifest(rows, TRAIN, tmp_path / "m", header, train.classes())

    with pytest.raises(ManifestError, match="are not in train"):
        pack(tmp_path / "m", tmp_path / "p", Raw(64), PackOptions())


def test_a_shard_knows_its_rows_without_holding_them():
    plan = PackPlan(name="x", level={}, per_shard=7, seed=3, num_images={"train": 100}, inputs={})
    shards = list(plan.shards())

    assert [len(shard.positions) for shard in shards] == [len(shard.rows) for shard in shards]
    assert sorted(row for shard in shards for row in shard.rows.tolist()) == list(range(100))
    assert all(field is None or isinstance(field, (str, int, range)) for s in shards for field in s)


def _interrupt_after(number):
    left = iter(range(number))

    def on_image(_num_bytes, _is_skipped):
        if next(left, None) is None:
            raise KeyboardInterrupt

    return on_image


def test_a_full_disk_is_reported_and_the_next_run_resumes(lossless, home, packs, tmp_path):
    out, soft_hard = tmp_path / "p", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, soft_hard[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            pack(home / "m", out, lossless, PackOptions(per_shard=7))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft_hard)
    left = [path.name for path in out.iterdir()]

    pack(home / "m", out, lossless, PackOptions(per_shard=7))

    assert not any(name.endswith((".partial", ".tar")) for name in left)
    assert files_of(out) == files_of(packs["lossless"])


def test_another_plan_is_refused_and_fresh_removes_only_what_a_pack_wrote(home, tmp_path):
    out = tmp_path / "p"
    pack(home / "m", out, Raw(8), PackOptions(per_shard=7))
    (out / "notes.txt").write_text("mine")

    with pytest.raises(UsageError, match=r"other options \(level\)"):
        pack(home / "m", out, Raw(9), PackOptions(per_shard=7))
    pack(home / "m", out, Raw(9), PackOptions(per_shard=100, fresh=True))

    assert (out / "notes.txt").read_text() == "mine"
    assert len(list(out.glob("*.tar"))) == 1
    assert verify_pack(out).is_same


def test_shards_that_were_lost_are_made_again_and_no_others(lossless, tmp_path):
    write_manifests(write_tree(tmp_path / "tree", bad=True), tmp_path / "m", holdout=True)
    out, options = tmp_path / "p", PackOptions(per_shard=4)
    pack(tmp_path / "m", out, lossless, options)
    wanted = files_of(out)
    shards = sorted(out.glob("*.tar"))
    shards[2].unlink()
    shards[-1].write_bytes(b"cut")
    num_left = []

    with pytest.raises(KeyboardInterrupt):
        pack(tmp_path / "m", out, lossless, options, on_image=_interrupt_after(2))
    summary = pack(tmp_path / "m", out, lossless, options, on_start=num_left.append)

    assert summary.num_shards_kept == len(shards) - 2
    assert num_left == [4 + 2]
    assert summary.num_skipped == 1
    assert files_of(out) == wanted


def test_an_index_that_is_damaged_is_made_again_with_fresh(home, tmp_path):
    out, options = tmp_path / "p", PackOptions(per_shard=7)
    pack(home / "m", out, Raw(8), options)
    wanted = files_of(out)
    (out / "packed.parquet").write_bytes(wanted["packed.parquet"][:-9])

    with pytest.raises(ManifestError, match="damaged"):
        pack(home / "m", out, Raw(8), options)
    pack(home / "m", out, Raw(8), replace(options, fresh=True))

    assert files_of(out) == wanted


def test_a_folder_with_other_files_is_refused(home, tmp_path):
    (tmp_path / "thesis.tex").touch()

    with pytest.raises(UsageError, match="not empty"):
        pack(home / "m", tmp_path, Raw(8), PackOptions())
    with pytest.raises(UsageError, match="folder of the manifests"):
        pack(home / "m", home / "m", Raw(8), PackOptions())
    with pytest.raises(UsageError, match="prefix of shard names"):
        pack(home / "m", tmp_path / "p", Raw(8), PackOptions(name="../x"))


@pytest.fixture
def copy(packs, tmp_path):
    shutil.copytree(packs["lossless"], tmp_path / "copy")
    return tmp_path / "copy"


def compared(folder):
    lines = []
    summary = verify_pack(folder, on_file=lambda *line: lines.append(line))
    return summary, [line for line in lines if line[0] != "="]


def test_verify_names_the_image_whose_bytes_have_changed(copy):
    row = open_manifest(copy, PACKED).read().to_pylist()[9]
    shard = copy / row["container"]
    content = bytearray(shard.read_bytes())
    content[row["offset"] + 400] ^= 4
    shard.write_bytes(content)

    summary, lines = compared(copy)

    assert lines == [("*", row["path"])]
    assert (summary.num_same, summary.num_different) == (NUM_IMAGES - 1, 1)
    assert not summary.is_same


def test_verify_names_the_shard_where_something_else_has_changed(copy):
    shard = sorted(copy.glob("*.tar"))[1]
    shard.write_bytes(shard.read_bytes().replace(b'"label":', b'"lapel":', 1))

    summary, lines = compared(copy)

    assert lines == [("*", shard.name)]
    assert summary.num_same == NUM_IMAGES
    assert not summary.is_same


def test_verify_names_the_images_of_a_shard_that_is_gone(copy):
    sorted(copy.glob("*.tar"))[0].unlink()

    summary, lines = compared(copy)

    assert (summary.num_missing, len(lines)) == (7, 7)
    assert {sign for sign, _ in lines} == {"-"}


def test_verify_covers_the_manifests_of_the_pack(home, copy, packs):
    def flip(name):
        content = bytearray((copy / name).read_bytes())
        content[60] ^= 4
        (copy / name).write_bytes(content)

    damages = {
        "train.parquet": lambda: flip("train.parquet"),
        "val.parquet": (copy / "val.parquet").unlink,
        "classes.parquet": lambda: flip("classes.parquet"),
        "skipped.parquet": lambda: shutil.copy(packs["raw"] / "skipped.parquet", copy),
        "_info.json": lambda: (copy / "_info.json").write_text("{}"),
    }
    for name, damage in damages.items():
        damage()
        summary, lines = compared(copy)
        assert (summary.num_same, summary.num_shards_same) == (NUM_IMAGES, summary.num_shards)
        assert list(summary.manifest_problems) == [name]
        assert lines == [("-" if name == "val.parquet" else "*", name)]
        assert not summary.is_same
        shutil.copy(packs["lossless"] / name, copy)
    assert compared(copy)[0].is_same


def test_verify_compares_the_images_of_a_manifest_with_the_index(copy):
    train = open_manifest(copy, TRAIN)
    rows = train.read()
    order = [1, 0, *range(2, rows.num_rows)]
    offsets = rows["offset"].take(order)
    swapped = rows.set_column(rows.schema.get_field_index("offset"), "offset", offsets)
    header = replace(train.header, root=".")

    write_manifest(swapped, TRAIN, copy, header, train.classes())
    assert compared(copy)[0].manifest_problems == {
        "train.parquet": "2 images have other offsets than in the index"
    }
    write_manifest(rows.slice(1), TRAIN, copy, header, train.classes())
    assert "the index" in compared(copy)[0].manifest_problems["train.parquet"]


@pytest.mark.parametrize("name", ["train.parquet", "val.parquet", "skipped.parquet"])
def test_a_manifest_that_is_gone_is_made_again(lossless, home, copy, packs, name):
    (copy / name).unlink()

    pack(home / "m", copy, lossless, PackOptions(per_shard=7))

    assert files_of(copy) == files_of(packs["lossless"])


@pytest.mark.parametrize("level", LEVELS)
def test_every_image_of_a_pack_can_be_decoded(packs, level):
    summary = verify_pack(packs[level])

    decode_pack(packs[level], summary, num_workers=1, on_bad=lambda *_: None)

    assert summary.is_same
    assert summary.num_decoded == NUM_IMAGES


@pytest.mark.parametrize(
    "name", ["a.jpg", "n01440764/n01440764_10026.json", "x" * 100, "x" * 101, "é" * 60 + ".cls"]
)
def test_headers_are_those_of_tarfile(name):
    info = tarfile.TarInfo(name)
    info.size = 123_456

    assert member_header(name, 123_456) == info.tobuf(tarfile.GNU_FORMAT)


def test_keys_have_no_dots_and_are_used_once():
    taken = set()

    keys = [sample_key(path, taken, row) for row, path in enumerate(["a.b/c.d.jpg", "a_b/c_d.png"])]

    assert keys == ["a_b/c_d", "a_b/c_d-row1"]


def test_pixels_of_a_raw_pack_are_read_by_pillow(packs):
    content = images_of(packs["raw"]).read_bytes(0)

    assert Image.open(io.BytesIO(content)).format == "PPM"
