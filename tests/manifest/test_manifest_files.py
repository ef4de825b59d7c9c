"""Manifest files: what is written is what is read, and nothing else passes for it."""

import errno
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WITH_EXTRAS
from hypothesis import given, settings
from hypothesis import strategies as st

import vit21k
from vit21k.errors import ManifestError
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import ChecksummedFile, ManifestHeader, open_manifest, read_manifest
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import (
    DIGESTS,
    EXPANDED,
    IMAGES,
    KINDS,
    PACKED,
    PROBLEMS,
    TRAIN,
    VAL,
    ManifestKind,
)
from vit21k.manifest.writer import manifest_writer, write_manifest
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val

HEADER = ManifestHeader(
    algorithm="md5", root="/data/ImageNet21K", options={"follow_symlinks": False}
)
CLASSES = ClassList(("n1", "n2", "n3"), ("one", None, "three"))
NUM_FLIPS = 300


def _value(dtype: pa.DataType, row: int) -> object:
    if pa.types.is_list(dtype):
        return [row % 2, 2][: 1 + row % 2]
    if pa.types.is_boolean(dtype):
        return row % 3 == 0
    if pa.types.is_floating(dtype):
        return row / 7
    if pa.types.is_integer(dtype):
        return row * 1_000_003
    if pa.types.is_fixed_size_binary(dtype):
        return random.Random(row).randbytes(dtype.byte_width)
    return f"n{row % 3}/Größe {row}.JPEG"


def _rows(kind: ManifestKind, num_rows: int = 20) -> pa.Table:
    rows = [{f.name: _value(f.type, row) for f in kind.schema} for row in range(num_rows)]
    return pa.Table.from_pylist(rows, schema=kind.schema)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_is_written_is_what_is_read(tmp_path: Path, kind: ManifestKind) -> None:
    write_manifest(_rows(kind), kind, tmp_path, HEADER, CLASSES)

    manifest = open_manifest(tmp_path, kind)

    assert manifest.read().equals(_rows(kind))
    assert pa.concat_tables(manifest.batches()).equals(_rows(kind))
    assert manifest.header == HEADER
    assert manifest.num_rows == 20
    frame = vit21k.read_manifest(kind.name, tmp_path).to_pandas()
    assert pa.Table.from_pandas(frame, kind.schema, preserve_index=False).equals(_rows(kind))
    assert manifest.path == tmp_path / kind.file_name


@pytest.mark.parametrize("kind", [IMAGES, TRAIN, VAL, EXPANDED, PACKED], ids=lambda k: k.name)
def test_a_row_is_one_digest(tmp_path: Path, kind: ManifestKind) -> None:
    write_manifest(_rows(kind, 3), kind, tmp_path, HEADER, CLASSES)
    before = (tmp_path / kind.file_name).read_bytes()

    rows = _rows(kind)
    again = rows["digest"][2].as_py().hex()
    with pytest.raises(ManifestError, match=f"have the digest {again}: it must be unique"):
        write_manifest(pa.concat_tables([rows, rows.slice(2, 1)]), kind, tmp_path, HEADER, CLASSES)

    assert (tmp_path / kind.file_name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [kind.file_name]


def test_digests_that_are_null_or_only_look_alike_are_not_the_same(tmp_path: Path) -> None:
    halves = [(0, 0), (0x9E37_79B9_7F4A_7C15, 1)]  # the same number is made of both
    digests = [low.to_bytes(8, "little") + high.to_bytes(8, "little") for low, high in halves]
    rows = _rows(IMAGES, 4).set_column(0, "digest", pa.array([*digests, None, None], pa.binary(16)))

    write_manifest(rows, IMAGES, tmp_path, HEADER, CLASSES)

    assert read_manifest(tmp_path, IMAGES)["digest"].to_pylist() == [*digests, None, None]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_manifest_without_rows_is_one(tmp_path: Path, kind: ManifestKind) -> None:
    write_manifest(_rows(kind, 0), kind, tmp_path, HEADER, CLASSES)

    assert read_manifest(tmp_path, kind).num_rows == 0


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_no_flipped_bit_passes(tmp_path: Path, kind: ManifestKind) -> None:
    write_manifest(_rows(kind), kind, tmp_path, HEADER, CLASSES)
    path = tmp_path / kind.file_name
    whole = path.read_bytes()
    rng = random.Random(kind.name)

    for bit in rng.sample(range(8 * len(whole)), NUM_FLIPS):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ManifestError):
            read_manifest(tmp_path, kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digests", "images"])
def test_none_of_all_bits_passes_when_it_is_flipped(tmp_path: Path, name: str) -> None:
    """All bits with `make test-extras`, which takes a minute; else one bit of each byte."""
    kind = KINDS[name]
    write_manifest(_rows(kind, 3), kind, tmp_path, HEADER, CLASSES)
    path = tmp_path / kind.file_name
    whole = path.read_bytes()

    one_of_each_byte = (8 * place + place % 8 for place in range(len(whole)))
    for bit in range(8 * len(whole)) if WITH_EXTRAS else one_of_each_byte:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ManifestError):
            read_manifest(tmp_path, kind)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_no_cut_passes(tmp_path: Path, kind: ManifestKind) -> None:
    write_manifest(_rows(kind), kind, tmp_path, HEADER, CLASSES)
    path = tmp_path / kind.file_name
    whole = path.read_bytes()

    for num_bytes in range(0, len(whole), 97):
        path.write_bytes(whole[:num_bytes])
        with pytest.raises(ManifestError):
            read_manifest(tmp_path, kind)


def test_damage_to_rows_is_found_whichever_columns_are_read(tmp_path: Path) -> None:
    write_manifest(_rows(DIGESTS), DIGESTS, tmp_path, HEADER)
    path = tmp_path / DIGESTS.file_name
    damaged = bytearray(path.read_bytes())
    damaged[40] ^= 1  # in the pages of `path`
    path.write_bytes(damaged)

    with pytest.raises(ManifestError, match="damaged"):
        read_manifest(tmp_path, DIGESTS, ["wnid"])
    with pytest.raises(ManifestError, match="damaged"):
        list(open_manifest(tmp_path, DIGESTS).batches(["wnid"]))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 9), max_size=8))
def test_the_pieces_in_which_rows_arrive_do_not_change_a_byte(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("m")
    rows = _rows(DIGESTS, sum(sizes))
    write_manifest(rows, DIGESTS, folder / "whole", HEADER)

    with manifest_writer(DIGESTS, folder / "pieces", HEADER) as writer:
        start = 0
        for size in sizes:
            writer.write(rows.slice(start, size))
            start += size

    whole, pieces = (folder / name / DIGESTS.file_name for name in ("whole", "pieces"))
    assert whole.read_bytes() == pieces.read_bytes()


@pytest.mark.parametrize("kind", [IMAGES, DIGESTS], ids=["images", "digests"])
def test_a_header_that_is_known_at_the_end_is_the_same_header(
    tmp_path: Path, kind: ManifestKind
) -> None:
    write_manifest(_rows(kind), kind, tmp_path / "once", HEADER, CLASSES)

    first = ManifestHeader(
        algorithm="sha256", root="/a/longer/root/that/must/go", inputs={"val": "0" * 32}
    )
    with manifest_writer(kind, tmp_path / "late", first, CLASSES) as writer:
        writer.write(_rows(kind))
        writer.header = HEADER

    paths = [tmp_path / name / kind.file_name for name in ("once", "late")]
    once, late = (pq.read_metadata(path) for path in paths)
    private = b"vit21k.fingerprint"  # covers the order of the keys, too
    assert {**late.metadata, private: b""} == {**once.metadata, private: b""}
    assert pq.read_schema(paths[0]).metadata == pq.read_schema(paths[1]).metadata
    assert open_manifest(tmp_path / "late", kind).header == HEADER
    assert read_manifest(tmp_path / "late", kind).equals(_rows(kind))
    assert b"/a/longer/root" not in paths[1].read_bytes()


def _write_in_row_groups(folder: Path) -> None:
    with manifest_writer(IMAGES, folder, HEADER, CLASSES, row_group_rows=7) as writer:
        for _ in range(4):
            writer.write(_rows(IMAGES))


def test_a_disk_that_is_full_is_an_error_wherever_it_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(_rows(IMAGES, 5), IMAGES, tmp_path, HEADER, CLASSES)
    before = (tmp_path / IMAGES.file_name).read_bytes()
    write, left = ChecksummedFile.write, [0]

    def fail(file: ChecksummedFile, data: bytes) -> int:
        left[0] -= not file._is_abandoned  # one of an earlier round, closed when it is collected
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(ChecksummedFile, "write", fail)
    for left[0] in range(1, 40, 3):
        with pytest.raises(OSError, match="No space") as caught:
            _write_in_row_groups(tmp_path)
        assert caught.value.errno == errno.ENOSPC
        assert [path.name for path in tmp_path.iterdir()] == [IMAGES.file_name]
        assert (tmp_path / IMAGES.file_name).read_bytes() == before


def test_the_fingerprint_covers_rows_header_and_classes(tmp_path: Path) -> None:
    def fingerprint(rows: pa.Table, header: ManifestHeader, classes: ClassList) -> str:
        write_manifest(rows, IMAGES, tmp_path, header, classes)
        return open_manifest(tmp_path, IMAGES).fingerprint

    other_header = ManifestHeader(algorithm="md5", root="/elsewhere")
    fingerprints = [
        fingerprint(_rows(IMAGES), HEADER, CLASSES),
        fingerprint(_rows(IMAGES, 19), HEADER, CLASSES),
        fingerprint(_rows(IMAGES), other_header, CLASSES),
        fingerprint(_rows(IMAGES), HEADER, ClassList(("n1", "n2", "n3", "n4"))),
    ]

    assert len(set(fingerprints)) == 4
    assert fingerprint(_rows(IMAGES), HEADER, CLASSES) == fingerprints[0]


def test_another_kind_is_refused_with_the_command_that_makes_the_right_one(tmp_path: Path) -> None:
    write_manifest(_rows(TRAIN), TRAIN, tmp_path, HEADER, CLASSES)

    with pytest.raises(ManifestError, match="kind train, version 3; expected images") as caught:
        open_manifest(tmp_path / "train.parquet", IMAGES)

    assert caught.value.hint == f"make it with `vit21k relabel --manifests {tmp_path}`"


def test_another_version_is_refused(tmp_path: Path) -> None:
    older = ManifestKind(**{**vars(IMAGES), "version": 1})
    write_manifest(_rows(IMAGES), older, tmp_path, HEADER, CLASSES)

    with pytest.raises(ManifestError, match="version 1; expected images, version 3") as caught:
        open_manifest(tmp_path, IMAGES)

    assert caught.value.hint == f"make it with `vit21k relabel --manifests {tmp_path}`"


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_no_column_is_encoded_as_duckdb_1_cannot_read(kind: ManifestKind, tmp_path: Path) -> None:
    write_manifest(_rows(kind), kind, tmp_path, HEADER, CLASSES)

    groups = pq.read_metadata(tmp_path / kind.file_name).row_group(0)
    columns = [groups.column(index) for index in range(groups.num_columns)]
    assert not [c.path_in_schema for c in columns if "BYTE_STREAM_SPLIT" in c.encodings]


def test_columns_that_may_be_null_need_not_be_given(tmp_path: Path) -> None:
    given = ["path", "wnid", "digest"]

    write_manifest(_rows(DIGESTS).select(given), DIGESTS, tmp_path, HEADER)

    rows = read_manifest(tmp_path, DIGESTS)
    assert rows.select(given).equals(_rows(DIGESTS).select(given))
    assert all(rows[name].null_count == 20 for name in rows.schema.names if name not in given)


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "images.parquet")
    (tmp_path / "train.parquet").write_text("hello")

    with pytest.raises(ManifestError, match="not a manifest of vit21k"):
        open_manifest(tmp_path, IMAGES)
    with pytest.raises(ManifestError, match="damaged or not a manifest"):
        open_manifest(tmp_path, TRAIN)
    with pytest.raises(ManifestError, match="no val manifest at"):
        open_manifest(tmp_path, VAL)


@pytest.mark.parametrize(
    "rows",
    [
        _rows(DIGESTS).drop_columns("wnid"),
        _rows(DIGESTS).set_column(1, "wnid", pa.nulls(20, pa.string())),
        _rows(DIGESTS).set_column(4, "digest", pa.array([b"short"] * 20)),
    ],
    ids=["column missing", "null", "other type"],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_written(
    tmp_path: Path, rows: pa.Table
) -> None:
    with pytest.raises(ManifestError, match="digests manifest"):
        write_manifest(rows, DIGESTS, tmp_path, HEADER)

    assert list(tmp_path.iterdir()) == []


def test_sizes_may_be_unknown(tmp_path: Path) -> None:
    rows = _rows(DIGESTS).set_column(2, "num_bytes", pa.nulls(20, pa.int64()))

    write_manifest(rows, DIGESTS, tmp_path, HEADER)

    assert read_manifest(tmp_path, DIGESTS)["num_bytes"].null_count == 20


def test_an_input_of_an_input_that_has_changed_makes_stale(tiny_tree: Path, tmp_path: Path) -> None:
    hash_tree(tiny_tree, tmp_path / "m")
    relabel(tmp_path / "m")
    make_val(tmp_path / "m", per_class=1)
    (tiny_tree / "n01440764" / "n01440764_1.JPEG").write_bytes(b"another")
    hash_tree(tiny_tree, tmp_path / "m")

    with pytest.raises(ManifestError, match=r"is stale: `digests.parquet`") as caught:
        open_manifest(tmp_path / "m", TRAIN)

    assert "make it again" in (caught.value.hint or "")
    assert open_manifest(tmp_path / "m", TRAIN, allow_stale=True).num_rows == 4


def test_hugging_face_datasets_reads_class_labels(tiny_tree: Path, tmp_path: Path) -> None:
    # before, columns of binary values of fixed size are refused
    datasets = pytest.importorskip("datasets", minversion="5.1")
    hash_tree(tiny_tree, tmp_path / "m")
    relabel(tmp_path / "m")

    loaded = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "m" / "images.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )

    wnids = ["n01440764", "n01443537", "n02512053"]
    assert loaded.features["label_ids"] == datasets.List(datasets.ClassLabel(names=wnids))
    assert loaded["label_ids"] == [[0], [0], [1], [1, 2]]


def test_every_kind_of_problem_says_what_it_is() -> None:
    assert all(kind.doc.endswith(".") for kind in ProblemKind)
    assert {kind for kind in ProblemKind if kind.is_skipped} == {
        ProblemKind.ALREADY_UNPACKED,
        ProblemKind.OTHER_SUFFIX,
        ProblemKind.HIDDEN,
        ProblemKind.SYMLINK,
        ProblemKind.UNLABELLED,
    }
    assert json.dumps({ProblemKind.EMPTY: 1}) == '{"empty": 1}'
    assert ProblemKind("empty") is ProblemKind.EMPTY
    assert PROBLEMS.schema.names == ["path", "kind", "detail"]
