"""A container of one file or several parts, read as one."""

import os
import random
from pathlib import Path

import pytest

from vit21k.sources.archive_file import ArchiveFile

CONTENT = random.Random(0).randbytes(10_000)


@pytest.fixture(params=["one", "parts"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "one":
        (tmp_path / "a.tar").write_bytes(CONTENT)
        return tmp_path / "a.tar"
    ends = [0, 1, 1, 4000, 4096, 10_000]  # the second one is empty
    for index in range(5):
        part = CONTENT[ends[index] : ends[index + 1]]
        (tmp_path / f"a.tar.{index}").write_bytes(part)
    (tmp_path / "a.tar.txt").write_bytes(b"no part")
    return tmp_path / "a.tar.0"


def test_it_is_read_at_any_offset(path: Path) -> None:
    with ArchiveFile(str(path)) as file:
        assert file.num_bytes == file.status.st_size == len(CONTENT)
        rng = random.Random(1)
        for _ in range(200):
            offset, num_bytes = rng.randrange(10_100), rng.randrange(6000)
            assert file.read_at(num_bytes, offset) == CONTENT[offset : offset + num_bytes]


def test_it_is_a_file(path: Path) -> None:
    with ArchiveFile(str(path)) as file:
        assert file.read() == CONTENT
        assert file.seek(-10, os.SEEK_END) == file.tell() == 9990
        assert file.read(20) == CONTENT[-10:]
        file.seek(3998)
        view = memoryview(bytearray(500))
        num_read = file.readinto(view)
        assert view[:num_read] == CONTENT[3998 : 3998 + num_read]
        assert file.seek(1, os.SEEK_CUR) == 3999 + num_read


def test_it_is_closed_with_its_last_reference(path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    file = ArchiveFile(str(path))
    assert len(list(Path("/proc/self/fd").iterdir())) > before
    del file
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_part_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.tar.aa").write_bytes(b"x")
    (tmp_path / "a.tar.ab").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError):
        ArchiveFile(str(tmp_path / "a.tar.aa"))
