"""`sources.remote`: listing, ranges, streams and errors of objects behind a URL."""

import errno
import io
import random
import zipfile
from collections.abc import Iterator

import flaky_files
import pytest
from flaky_files import BackEndError, failing, put, short_answer
from hypothesis import given
from hypothesis import strategies as st

from vit21k.errors import ImageTreeError
from vit21k.sources import remote
from vit21k.sources.remote import (
    ObjectEndsError,
    ObjectFacts,
    Range,
    RemoteTree,
    is_url,
    merge_ranges,
)

CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture(autouse=True)
def _flaky_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_DELAY_S", 0.0)
    flaky_files.start_flaky_files()


@pytest.fixture
def tree() -> Iterator[RemoteTree]:
    tree = RemoteTree(put({"a.tar": CONTENT, "n1/x.jpg": b"xy", "n1/y z%.jpg": b""}))
    yield tree
    tree.close()


def requests(operation: str) -> list[tuple[str, int | None, int | None]]:
    return [
        (path, *rest) for name, path, *rest in flaky_files.FlakyFiles.requests if name == operation
    ]


def test_a_listing_names_folders_and_objects(tree: RemoteTree) -> None:
    assert sorted((e.name, e.is_folder) for e in tree.entries()) == [("a.tar", False), ("n1", True)]
    inside = {entry.name: entry.facts.num_bytes for entry in tree.entries("n1")}
    assert inside == {"x.jpg": 2, "y z%.jpg": 0}


def test_folders_objects_and_nothing_are_distinguished(tree: RemoteTree) -> None:
    assert (tree.is_folder("n1"), tree.is_folder("a.tar"), tree.is_folder("no")) == (
        True,
        False,
        False,
    )
    assert (tree.is_object("n1"), tree.is_object("a.tar"), tree.is_object("no")) == (
        False,
        True,
        False,
    )


@pytest.mark.parametrize(
    "error",
    [
        BackEndError("503 SlowDown"),
        ConnectionResetError(104, "reset"),
        TimeoutError(),
        KeyError("x"),
    ],
)
def test_errors_of_any_back_end_are_retried(tree: RemoteTree, error: Exception) -> None:
    failing(remote.NUM_TRIES - 1, error)

    assert tree.read("n1/x.jpg", 2) == b"xy"


def test_an_error_that_stays_is_one_of_the_system(tree: RemoteTree) -> None:
    failing(100, BackEndError("503 SlowDown"))

    with pytest.raises(OSError, match=r"503 SlowDown \(BackEndError\)") as caught:
        tree.read("n1/x.jpg")
    assert caught.value.errno == errno.EIO
    assert len(requests("cat_file")) == remote.NUM_TRIES


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), PermissionError("403")])
def test_an_object_that_is_gone_or_forbidden_is_not_retried(
    tree: RemoteTree, error: OSError
) -> None:
    failing(1, error)

    with pytest.raises(type(error), match=str(error)) as caught:
        tree.read("n1/x.jpg")
    assert caught.value.errno in {errno.ENOENT, errno.EACCES}


def test_a_short_answer_is_retried(tree: RemoteTree) -> None:
    short_answer("a.tar", CONTENT[10:15])

    assert tree.read_range("a.tar", 10, 20) == CONTENT[10:20]


def test_an_object_that_ends_before_the_range_is_an_error(tree: RemoteTree) -> None:
    with pytest.raises(ObjectEndsError, match="10 of 20 bytes"):
        tree.read_range("a.tar", len(CONTENT) - 10, len(CONTENT) + 10)
    assert len(requests("cat_file")) == 1


def test_neighbours_are_read_by_one_request(tree: RemoteTree) -> None:
    ranges = [Range("a.tar", at, at + 50) for at in (200, 0, 299_000, 100)] + [
        Range("n1/x.jpg", 0, 1)
    ]

    found = tree.read_ranges(ranges)

    assert found == [*(CONTENT[r.start : r.end] for r in ranges[:4]), b"x"]
    assert sorted(requests("cat_file")) == [
        ("a.tar", 0, 250),
        ("a.tar", 299_000, 299_050),
        ("n1/x.jpg", 0, 1),
    ]


def test_a_range_that_fails_does_not_lose_its_neighbours(tree: RemoteTree) -> None:
    first, beyond, other = tree.read_ranges(
        [
            Range("a.tar", len(CONTENT) - 20, len(CONTENT)),
            Range("a.tar", len(CONTENT), len(CONTENT) + 5),
            Range("no.tar", 0, 5),
        ]
    )

    assert first == CONTENT[-20:]
    assert isinstance(beyond, OSError)
    assert isinstance(other, FileNotFoundError)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 10**6), st.integers(0, 10**5))))
def test_merged_requests_hold_each_range_once(places: list[tuple[str, int, int]]) -> None:
    ranges = [Range(path, start, start + size) for path, start, size in places]

    merged = merge_ranges(ranges)

    assert sorted(index for group in merged for index in group) == list(range(len(ranges)))
    for group in merged:
        ordered = [ranges[index] for index in group]
        assert ordered == sorted(ordered)
        assert {r.path for r in ordered} == {ordered[0].path}


def test_a_stream_reads_and_seeks_as_a_file(
    tree: RemoteTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_HOP_BYTES", 1000)
    monkeypatch.setattr(remote, "_PIECE_BYTES", 7000)
    drawn = random.Random(1)
    ours, plain = io.BufferedReader(tree.open("a.tar"), 512), io.BytesIO(CONTENT)
    for _ in range(200):
        if drawn.random() < 0.4:
            at = drawn.randrange(len(CONTENT) + 100)
            assert ours.seek(at) == plain.seek(at)
        size = drawn.choice([1, 100, 5000, 40_000])
        assert ours.read(size) == plain.read(size)
    assert ours.seek(-5, io.SEEK_END) == len(CONTENT) - 5
    assert ours.read() == CONTENT[-5:]


def test_a_stream_grows_its_pieces_and_reads_each_byte_once(
    tree: RemoteTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_HOP_BYTES", 1000)
    monkeypatch.setattr(remote, "_PIECE_BYTES", 8000)

    assert tree.open("a.tar").read() == CONTENT

    sizes = [(end or 0) - (start or 0) for _, start, end in requests("cat_file")]
    assert sum(sizes) == len(CONTENT)
    assert sorted(sizes)[:4] == [1000, 4000, 7000, 8000]


def test_a_zip_is_read_through_a_stream() -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a", b"1" * 1000)
    tree = RemoteTree(put({"x.zip": content.getvalue()}))

    assert zipfile.ZipFile(tree.open("x.zip")).read("a") == b"1" * 1000


def test_a_stream_notices_that_the_object_has_changed(tree: RemoteTree) -> None:
    file = tree.open("a.tar")
    before = file.status
    file.read(10)
    assert file.status == before

    flaky_files.FlakyFiles.tags[f"{flaky_files.ROOT}/a.tar"] = "other"

    assert file.status != before


def test_parts_are_read_as_one_stream() -> None:
    parts = {
        f"x.tar.gz.part{index}": CONTENT[at : at + 100_000]
        for index, at in enumerate((0, 100_000, 200_000))
    }
    tree = RemoteTree(put(parts))

    file = tree.open("x.tar.gz.part0")

    assert file.read_at(150_000, 50_000) == CONTENT[50_000:200_000]
    assert file.read() == CONTENT


def test_times_of_all_back_ends_are_read() -> None:
    wanted = 1_700_000_000 * 10**9
    for time in (1.7e9, "Tue, 14 Nov 2023 22:13:20 GMT", "2023-11-14T22:13:20+00:00"):
        assert ObjectFacts.of({"size": 1, "mtime": time}).mtime_ns == wanted
    assert ObjectFacts.of({"size": None}) == ObjectFacts(None, "", 0)


def test_tags_count_more_than_times() -> None:
    facts = ObjectFacts(1, "a", 5)
    assert facts.is_same(ObjectFacts(1, "a", 6))
    assert not facts.is_same(ObjectFacts(1, "b", 5))
    assert not facts.is_same(ObjectFacts(1, "", 6))


def test_a_url_is_distinguished_from_a_folder() -> None:
    assert is_url("s3://bucket/in21k")
    assert not is_url("/data/s3:/in21k")


def test_a_url_that_fsspec_does_not_know_is_refused() -> None:
    with pytest.raises(ImageTreeError, match="unheardof"):
        RemoteTree("unheardof://bucket")
