"""`sources.remote` against an HTTP server on loopback: ranges, 500s, resets, late answers."""

import random
from collections.abc import Iterator

import pytest
from conftest import needs_extra

needs_extra("aiohttp")

from object_server import ObjectServer, running

from vit21k.sources import remote
from vit21k.sources.remote import ObjectEndsError, Range, RemoteTree

CONTENT = random.Random(0).randbytes(400_000)
NAME = "n 1/x%+ \u00e9.jpg"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    monkeypatch.setattr(remote, "FIRST_DELAY_S", 0.001)
    with running({"v/a.tar": CONTENT, f"v/{NAME}": b"xyz", "v/n 1/empty.jpg": b""}) as server:
        yield server


@pytest.fixture
def tree(server: ObjectServer) -> Iterator[RemoteTree]:
    tree = RemoteTree(f"{server.url}/v")
    yield tree
    tree.close()


def test_pages_are_listings(tree: RemoteTree) -> None:
    assert sorted((e.name, e.is_folder) for e in tree.entries()) == [
        ("a.tar", False),
        ("n 1", True),
    ]
    assert sorted(entry.name for entry in tree.entries("n 1/")) == ["empty.jpg", "x%+ \u00e9.jpg"]
    assert tree.is_folder()
    assert not tree.is_folder("nothing")


def test_objects_have_facts(tree: RemoteTree) -> None:
    facts = tree.facts_of(["a.tar", NAME, "gone.tar"])

    assert facts["a.tar"]
    assert facts["a.tar"].num_bytes == len(CONTENT)
    assert facts["a.tar"].is_version
    assert facts[NAME]
    assert facts["gone.tar"] is None


def test_contents_are_read(tree: RemoteTree) -> None:
    assert tree.read(NAME, 3) == b"xyz"
    assert tree.read("n 1/empty.jpg", 0) == b""
    assert tree.read_range("a.tar", 7, 5000) == CONTENT[7:5000]
    assert tree.open("a.tar").read() == CONTENT
    with pytest.raises(ObjectEndsError):
        tree.read_range("a.tar", len(CONTENT) - 5, len(CONTENT) + 5)
    with pytest.raises(ObjectEndsError):
        tree.read_range("a.tar", len(CONTENT) + 5, len(CONTENT) + 15)
    for ask in (tree.read, tree.facts):
        with pytest.raises(FileNotFoundError):
            ask("gone.tar")


@pytest.mark.parametrize("fault", ["500", "503", "reset", "short", "slow"])
def test_every_fault_is_survived(server: ObjectServer, tree: RemoteTree, fault: str) -> None:
    drawn = random.Random(fault)
    share = 0.05 if fault == "slow" else 0.4
    server.fault = lambda _method, _path: fault if drawn.random() < share else None
    ranges = [Range("a.tar", at, at + 100) for at in range(0, 300_000, 70_000)]

    assert tree.read_ranges(ranges) == [CONTENT[r.start : r.end] for r in ranges]
    assert tree.open("a.tar").read() == CONTENT
    assert tree.facts("a.tar").num_bytes == len(CONTENT)
    assert len(tree.entries("n 1")) == 2


def test_a_server_that_stays_down_is_an_error_of_the_system(
    server: ObjectServer, tree: RemoteTree
) -> None:
    server.fault = lambda _method, _path: "500"

    with pytest.raises(OSError, match="500"):
        tree.facts("a.tar")
    with pytest.raises(OSError, match="500"):
        tree.read("a.tar")
    assert len(server.requests) == 3 * remote.NUM_TRIES  # HEAD and GET for facts


def test_a_server_without_ranges_is_noticed(server: ObjectServer, tree: RemoteTree) -> None:
    server.has_ranges = False

    with pytest.raises(OSError, match="400,000 of 100 bytes"):
        tree.read_range("a.tar", 0, 100)
