"""Sources behind a URL: every layout gives the rows that it gives on a disk, whatever fails."""

import gzip
import io
import json
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flaky_files
import pyarrow as pa
import pytest
from conftest import TINY_FILES, MakeTree, needs_extra
from flaky_files import BackEndError, FlakyFiles, failing, put, short_answer
from fsspec.implementations.memory import MemoryFileSystem
from object_server import running
from table_files import parquet_of, table
from tar_files import tar_of, tar_of_tars

from vit21k.errors import ImageTreeError, LayoutError, MissingExtraError, UsageError
from vit21k.manifest.io import open_manifest, read_manifest
from vit21k.manifest.schema import DIGESTS, IMAGES, LOCATOR_COLUMNS, PROBLEMS
from vit21k.prep import hash_remote
from vit21k.prep.hash_tree import HashSummary, hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.shards import Shard, merge_shards
from vit21k.prep.verify import compare_copies, verify
from vit21k.sources import remote
from vit21k.sources.gzip_tar import rapidgzip
from vit21k.sources.read import ImageReader, Locator

Files = Mapping[str, bytes]

JPEG = b"\xff\xd8\xff"
WNIDS = ("n01440764", "n01443537", "n01484850")
IMAGES_OF = {
    wnid: {f"{wnid}_{i}.JPEG": JPEG + random.Random(f"{wnid}{i}").randbytes(3000) for i in range(5)}
    for wnid in WNIDS
}
ODD = {
    "images/n1/a b.JPEG": b"1",
    "images/n1/\u00e9.jpg": b"2",
    "images/n1.5/x.jpg": b"3",
    "images/n1/deep/x.png": b"4",
    "images/n1/empty.jpg": b"",
    "images/n1/page.jpg": b"<html><body>404</body></html>",
    "images/n1/README": b"read me",
    "images/n1/.hidden/x.jpg": b"5",
    "stray.jpg": b"6",
}


def _zip(files: Files, method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def _shard(start: int) -> bytes:
    files = {}
    for index in range(start, start + 6):
        files[f"{index:08}.jpg"] = JPEG + bytes([index]) * 900
        files[f"{index:08}.json"] = json.dumps({"class_name": WNIDS[index % 3]}).encode()
    return tar_of(files)


def _parquet() -> bytes:
    images: list[dict[str, Any] | None] = [
        {"bytes": content, "path": name}
        for files in IMAGES_OF.values()
        for name, content in files.items()
    ]
    return parquet_of(
        table(pa.array([i // 5 for i in range(15)]), names=WNIDS, images=images)
    ).getvalue()


_TAR_OF_TARS = tar_of_tars(IMAGES_OF)
_PACKED = gzip.compress(
    tar_of({f"{w}/{n}": c for w, files in IMAGES_OF.items() for n, c in files.items()})
)
LAYOUTS: dict[str, Files] = {
    "folders": TINY_FILES,
    "odd folders": {**TINY_FILES, **ODD},
    "class tars": {f"x/{wnid}.tar": tar_of(files) for wnid, files in IMAGES_OF.items()},
    "tar of tars": {"fall11_whole.tar": _TAR_OF_TARS, **TINY_FILES},
    "beside": {"n9.tar": tar_of({"a.jpg": b"abc"}), "n9/a.jpg": b"abc", **TINY_FILES},
    "differs": {"n9.tar": tar_of({"a.jpg": b"abc", "b.jpg": b"d"}), "n9/a.jpg": b"abc"},
    "damaged tar": {"n9.tar": tar_of({"a.jpg": b"abc"})[:700], **TINY_FILES},
    "compressed tar": {"whole.tar.gz": _PACKED},
    "multi-part": {
        "whole.tar.gz.part0": _PACKED[:20_000],
        "whole.tar.gz.part1": _PACKED[20_000:30_000],
        "whole.tar.gz.part2": _PACKED[30_000:],
    },
    "WebDataset": {f"in22k-train-{i:04}.tar": _shard(6 * i) for i in range(3)},
    "stored zips": {f"{w}.zip": _zip(files, zipfile.ZIP_STORED) for w, files in IMAGES_OF.items()},
    "deflated zip": {
        "all.zip": _zip(
            {f"{w}/{n}": c for w, f in IMAGES_OF.items() for n, c in f.items()},
            zipfile.ZIP_DEFLATED,
        )
    },
    "Swin's zip": {
        "train.zip": _zip({"a/1.jpg": JPEG + b"1", "b/2.jpg": JPEG + b"2"}, zipfile.ZIP_STORED),
        "train_map.txt": b"a/1.jpg\t0\nb/2.jpg\t1\n",
    },
    "Parquet": {"data/train-00000-of-00001.parquet": _parquet()},
    "splits": {f"{one}/{w}/{one}.jpg": one.encode() for one in ("train", "val") for w in WNIDS},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _flaky_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_DELAY_S", 0.0)
    flaky_files.start_flaky_files()


def _hash(root: str | Path, manifests: Path, **options: Any) -> HashSummary:
    return hash_tree(root, manifests, **options)


def _rows(folder: Path, kind: Any = DIGESTS) -> list[dict[str, Any]]:
    rows = read_manifest(folder, kind).to_pylist()
    return [{**row, "mtime_ns": None} if "mtime_ns" in row else row for row in rows]


def _num_reads() -> int:
    return sum(name == "cat_file" for name, *_ in FlakyFiles.requests)


@pytest.mark.parametrize("is_page", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_those_of_the_same_source_on_a_disk(
    layout: str, is_page: bool, make_tree: MakeTree, tmp_path: Path
) -> None:
    FlakyFiles.lists_names_only = is_page
    files = LAYOUTS[layout]
    options = {"label_from": "folder"} if "folders" in layout or layout == "beside" else {}
    on_disk = _hash(make_tree(files), tmp_path / "disk", **options)

    behind = _hash(put(files), tmp_path / "remote", num_workers=3, **options)

    assert _rows(tmp_path / "remote") == _rows(tmp_path / "disk")
    assert _rows(tmp_path / "remote", PROBLEMS) == _rows(tmp_path / "disk", PROBLEMS)
    assert behind.num_entries == on_disk.num_entries


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_faulty_server_gives_the_rows_of_a_disk(
    layout: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    needs_extra("aiohttp")
    options = {"label_from": "folder"} if "folders" in layout or layout == "beside" else {}
    _hash(make_tree(LAYOUTS[layout]), tmp_path / "disk", **options)
    drawn = random.Random(layout)
    faults = ["500", "503", "reset", "short", *[None] * 8]
    with running(LAYOUTS[layout]) as server:
        server.fault = lambda _method, _path: drawn.choice(faults)

        _hash(server.url, tmp_path / "remote", **options)

    assert _rows(tmp_path / "remote") == _rows(tmp_path / "disk")
    assert _rows(tmp_path / "remote", PROBLEMS) == _rows(tmp_path / "disk", PROBLEMS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_are_read_at_their_locators(
    layout: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    files = LAYOUTS[layout]
    options = {"label_from": "folder"} if "folders" in layout or layout == "beside" else {}
    _hash(put(files), tmp_path, **options)
    locators = [
        Locator(**row) for row in read_manifest(tmp_path, DIGESTS, LOCATOR_COLUMNS).to_pylist()
    ]
    far = ImageReader(flaky_files.URL).read_many(locators)

    near = ImageReader(make_tree(files))
    assert far == [near.read(*locator) for locator in locators]


@pytest.mark.parametrize("layout", ["compressed tar", "multi-part"])
def test_compressed_tars_are_read_at_random(
    layout: str, make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("gzip_tar", "read"):
        monkeypatch.setattr(f"vit21k.sources.{module}.NEEDS_INDEX_BYTES", 1)
    files = LAYOUTS[layout]
    _hash(put(files), tmp_path / "m")
    rows = read_manifest(tmp_path / "m", DIGESTS, LOCATOR_COLUMNS).to_pylist()
    locators = [Locator(**row) for row in rows]
    near = ImageReader(make_tree(files), manifests=tmp_path / "near")
    FlakyFiles.requests.clear()

    far = ImageReader(flaky_files.URL, manifests=tmp_path / "m")
    if rapidgzip():  # the index that `hash` has made
        far.index_compressed({str(locator.container) for locator in locators}, pytest.fail)

    assert far.read_many(locators) == [near.read(*locator) for locator in locators]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_run_reads_nothing_again(layout: str, tmp_path: Path) -> None:
    options = {"label_from": "folder"} if "folders" in layout or layout == "beside" else {}
    url = put(LAYOUTS[layout])
    _age()
    first = _hash(url, tmp_path, **options)
    before = (tmp_path / "digests.parquet").read_bytes()
    FlakyFiles.requests.clear()

    second = _hash(url, tmp_path, **options)

    assert (tmp_path / "digests.parquet").read_bytes() == before
    if not first.num_bad and "differs" not in layout:
        assert second.num_known == first.num_files
        assert second.num_bytes_read == 0


def _age() -> None:
    """Let all objects be older than the clocks of two machines differ."""
    for info in FlakyFiles.store.values():
        info.modified = info.created = info.created.replace(year=2020)


@pytest.mark.parametrize("layout", ["folders", "class tars", "WebDataset"])
def test_an_object_with_another_tag_is_read_again(layout: str, tmp_path: Path) -> None:
    url = put(LAYOUTS[layout])
    _age()
    first = _hash(url, tmp_path)
    changed = sorted(LAYOUTS[layout])[0]
    FlakyFiles.tags[f"{flaky_files.ROOT}/{changed}"] = "other"

    second = _hash(url, tmp_path)

    assert 0 < second.num_bytes_read < first.num_bytes_read
    assert second.num_known < second.num_files


def test_what_was_written_just_now_is_not_cached(tmp_path: Path) -> None:
    url = put(TINY_FILES)
    _hash(url, tmp_path)

    assert _hash(url, tmp_path).num_known == 0


def test_an_interrupted_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"n{i % 7}/{i}.jpg": b"%d" % i for i in range(200)}
    url = put(files)
    _age()

    def interrupt(chunk: Any) -> None:
        if "n3/" in str(chunk.paths[:1]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _hash(url, tmp_path, num_workers=1, on_chunk=interrupt)
    assert not (tmp_path / "digests.parquet").exists()

    assert _hash(url, tmp_path).num_known >= 80


@pytest.mark.parametrize("layout", ["odd folders", "class tars", "WebDataset", "Parquet", "splits"])
def test_faults_of_the_server_change_nothing(
    layout: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    files = LAYOUTS[layout]
    options = {"label_from": "folder"} if layout == "odd folders" else {}
    _hash(make_tree(files), tmp_path / "disk", **options)
    url = put(files)
    drawn = random.Random(0)
    errors = [
        BackEndError("503 SlowDown"),
        ConnectionResetError(104, "reset"),
        TimeoutError(),
        None,
        None,
    ]

    def fault(_operation: str, _path: str) -> None:
        if error := drawn.choice(errors):
            raise error

    FlakyFiles.faults.append(fault)
    _hash(url, tmp_path / "remote", **options)

    assert _rows(tmp_path / "remote") == _rows(tmp_path / "disk")
    assert _rows(tmp_path / "remote", PROBLEMS) == _rows(tmp_path / "disk", PROBLEMS)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("folders", "n02512053/n02512053_9.JPEG"),
        ("class tars", "x/n01443537.tar"),
        ("WebDataset", "in22k-train-0001.tar"),
    ],
)
def test_what_cannot_be_read_is_listed_and_read_by_the_next_run(
    layout: str, name: str, tmp_path: Path
) -> None:
    url = put(LAYOUTS[layout])
    _age()
    expected = _hash(url, tmp_path / "good").num_files
    failing(10**6, BackEndError("500 InternalError"), name, "cat_file")

    with_fault = _hash(url, tmp_path / "m", layout="webdataset" if layout == "WebDataset" else None)

    [problem] = _rows(tmp_path / "m", PROBLEMS)
    assert (problem["path"], problem["kind"]) == (name, "unreadable")
    assert "500 InternalError (BackEndError)" in problem["detail"]
    assert with_fault.num_files < expected
    FlakyFiles.faults.clear()
    assert _hash(url, tmp_path / "m").num_files == expected


def test_a_folder_that_cannot_be_listed_is_a_problem(tmp_path: Path) -> None:
    url = put(TINY_FILES)
    failing(10**6, BackEndError("AccessDenied"), "n02512053", "ls")

    _hash(url, tmp_path)

    [problem] = _rows(tmp_path, PROBLEMS)
    assert (problem["path"], problem["kind"]) == ("n02512053/", "unreadable")


def test_a_short_answer_is_no_verdict(make_tree: MakeTree, tmp_path: Path) -> None:
    _hash(make_tree(TINY_FILES), tmp_path / "disk")
    url = put(TINY_FILES)
    short_answer("n02512053_9.JPEG", b"fi")

    _hash(url, tmp_path / "remote")

    assert _rows(tmp_path / "remote") == _rows(tmp_path / "disk")


@pytest.mark.parametrize("has_tags", [True, False])
@pytest.mark.parametrize("layout", ["folders", "class tars", "WebDataset"])
def test_an_object_that_keeps_changing_is_a_problem(
    layout: str, has_tags: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"folders": "n02512053/n02512053_9.JPEG", "class tars": "x/n01443537.tar"}.get(
        layout, "in22k-train-0001.tar"
    )
    url = put(LAYOUTS[layout])
    info, sizes = MemoryFileSystem.info, iter(range(1, 10**6))

    def changing(self: Any, path: str, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = info(self, path, **options)
        if path.endswith(name):
            found["size"] += next(sizes)
        return found

    if not has_tags:
        monkeypatch.setattr(FlakyFiles, "_tagged", lambda _self, found: found)
    monkeypatch.setattr(MemoryFileSystem, "info", changing)
    if layout == "folders" and has_tags:
        short_answer(name, b"")  # so that the listing does not tell all
        short_answer(name, b"")
        short_answer(name, b"")

    _hash(url, tmp_path, layout="webdataset" if layout == "WebDataset" else None)

    [problem] = _rows(tmp_path, PROBLEMS)
    assert (problem["path"], problem["kind"]) == (name, "changed_while_read")


def test_a_large_object_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put({"n1/x.JPEG": JPEG + bytes(1000)})
    _hash(url, tmp_path / "whole")
    monkeypatch.setattr(hash_remote, "WHOLE_BYTES", 100)
    monkeypatch.setattr(hash_remote, "_PIECE_BYTES", 64)

    _hash(url, tmp_path / "pieces")

    [whole], [pieces] = (_rows(tmp_path / name) for name in ("whole", "pieces"))
    assert pieces == {**whole, "content_digest": None, "has_end": None}


@pytest.mark.parametrize("layout", ["folders", "class tars", "WebDataset"])
def test_shards_give_the_bytes_of_one_run(layout: str, tmp_path: Path) -> None:
    url = put(LAYOUTS[layout])
    _hash(url, tmp_path / "one")
    for number in (1, 2, 3):
        _hash(url, tmp_path / "m", shard=Shard(number, 3))

    merge_shards(sorted((tmp_path / "m" / "shards").iterdir()), tmp_path / "m")

    for kind in (DIGESTS, PROBLEMS):
        assert (tmp_path / "m" / kind.file_name).read_bytes() == (
            tmp_path / "one" / kind.file_name
        ).read_bytes()


@pytest.mark.parametrize("layout", ["folders", "class tars", "WebDataset", "Parquet", "multi-part"])
def test_verify_compares_with_the_url(layout: str, tmp_path: Path) -> None:
    files = LAYOUTS[layout]
    url = put(files)
    _hash(url, tmp_path)
    assert verify(tmp_path).is_same
    if layout == "folders":
        assert compare_copies(tmp_path) == 2
    FlakyFiles.store.clear()
    put({"README": b"", **dict(sorted(files.items())[1:])})

    found = verify(tmp_path, root=url)

    assert not found.is_same
    assert found.num_missing > 0


def test_one_archive_may_be_the_source(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"whole.tar": _TAR_OF_TARS, "n1/x.jpg": b"1"})
    _hash(root / "whole.tar", tmp_path / "disk")
    url = put({"whole.tar": _TAR_OF_TARS, "n1/x.jpg": b"1"})

    _hash(f"{url}/whole.tar", tmp_path / "remote")

    assert _rows(tmp_path / "remote") == _rows(tmp_path / "disk")
    assert open_manifest(tmp_path / "remote", DIGESTS).header.root == url
    assert verify(tmp_path / "remote").is_same


def test_what_comes_after_runs_on_them(tmp_path: Path) -> None:
    _hash(put(TINY_FILES), tmp_path)

    relabel(tmp_path)

    assert open_manifest(tmp_path, IMAGES).header.root == flaky_files.URL
    assert open_manifest(tmp_path, IMAGES).num_rows == 4


@pytest.mark.parametrize(
    "files", [["val/a.jpg", "val/b.jpg"], ["dog/2020/a.jpg", "cat/2020/b.jpg"]]
)
def test_folders_that_cannot_be_classes_are_refused(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(LayoutError):
        _hash(put(dict.fromkeys(files, b"x")), tmp_path)

    assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize("options", [{"mode": "quick"}, {"engine": iter}])
def test_quick_and_other_engines_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a URL is always read in full"):
        _hash(put(TINY_FILES), tmp_path, **options)


@pytest.mark.parametrize("url", ["flaky://nowhere", "unheardof://bucket"])
def test_a_url_without_a_tree_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ImageTreeError):
        _hash(url, tmp_path)


def test_a_tree_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageTreeError, match="no images below"):
        _hash(put({"n1/README": b"1"}), tmp_path)

    assert not list(tmp_path.glob("*.parquet"))


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_url: str, **_: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)

    with pytest.raises(MissingExtraError, match="Install s3fs") as caught:
        _hash("s3://bucket", tmp_path)
    assert "vit21k[s3]" in (caught.value.hint or "")
