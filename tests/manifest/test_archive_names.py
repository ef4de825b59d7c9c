"""Names of archives, of their parts, and of archives that are not read."""

import subprocess
from pathlib import Path

import pytest

from vit21k.manifest.archive_names import archive_stem, find_parts, how_to_unpack, is_gzip_name


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("n1.tar", "n1"),
        ("N1.TAR.GZ", "N1"),
        ("a.b.tgz", "a.b"),
        ("n1.zip", "n1"),
        ("fall11_whole.tar.aa", "fall11_whole"),
        ("a.tar.gz.00", "a"),
        ("a.tgz.part1", "a"),
        ("a.tar-part-aa", "a"),
        ("a.tar.gzaa", "a"),
        ("a.tar.ab", None),
        ("a.tar.gz.2", None),
        ("a.tar.xz", None),
        ("a.jpg.aa", None),
        (".tar", None),
        (".zip", None),
        ("a.gz", None),
    ],
)
def test_stem(name: str, stem: str | None) -> None:
    assert archive_stem(name.encode()) == (stem.encode() if stem else None)


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ("a.tar.aa a.tar.ab a.tar.ac", [3]),
        ("a.tar.gz.00 a.tar.gz.01 b.tgz.1 b.tgz.2 c.tar", [2, 2]),
        ("a.tar.part8 a.tar.part9 a.tar.part10 a.tar.part1", None),
        (" ".join(f"a.tar.part{i}" for i in range(1, 13)), [12]),
        ("a.tar.0 a.tar.1 a.tar.2", [3]),
        ("a.tar.gzaa a.tar.gzab", [2]),
        ("a.tar.aa a.tar.ac", None),
        ("a.tar.ab a.tar.ac", None),
        ("a.tar.xz a.tar.gz", []),
        ("a.tar.gz a.tar.txt a.tar.md5", []),
        ("a.tar.aa a.tar.txt", [1]),
    ],
)
def test_parts(names: str, parts: list[int] | None) -> None:
    found = find_parts(name.encode() for name in sorted(names.split()))
    if parts is None:
        assert found.flaws
    else:
        assert [len(each) for each in found.of_first.values()] == parts
        assert not found.flaws


@pytest.mark.parametrize(
    ("options", "num_parts"),
    [([], 700), (["-d"], 100), (["-a", "3"], 30), (["--numeric-suffixes=1"], 50)],
)
def test_parts_that_split_writes(options: list[str], num_parts: int, tmp_path: Path) -> None:
    command = ["split", "-b", "1", *options, "-", "a.tar.gz."]
    subprocess.run(command, input=bytes(num_parts), cwd=tmp_path, check=True)

    written = sorted(path.name.encode() for path in tmp_path.iterdir())
    found = find_parts(reversed(written))

    assert not found.flaws
    assert list(found.of_first.values()) == [written]


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("a.7z", "7z x a.7z"),
        ("a.tar.bz2", "bunzip2 -k a.tar.bz2"),
        ("a.TXZ", "xz -dk a.TXZ"),
        ("a.tar.zst", "zstd -d a.tar.zst"),
        ("a.zip.001", "cat a.zip.* > a.zip"),
        ("a.7z.002", "cat a.7z.* > a.7z"),
        ("a.z01", "zip -s 0 a.zip --out a-joined.zip"),
        ("a.zip", None),
        ("a.tar", None),
        ("a.jpg", None),
        (".7z", None),
    ],
)
def test_how_to_unpack(name: str, command: str | None) -> None:
    found = how_to_unpack(name.encode())
    assert (found is None) == (command is None)
    assert (command or "") in (found or "")


@pytest.mark.parametrize("name", ["a.gz", "a.TGZ", "a.tar.gz.aa", "a.tgz.part2"])
def test_compressed(name: str) -> None:
    assert is_gzip_name(name.encode())
    assert not is_gzip_name(name.encode().replace(b".gz", b"").lower().replace(b".tgz", b".tar"))
