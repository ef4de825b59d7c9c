"""`prep.decode_check`: every image gets one verdict, whatever it does to its decoder."""

import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import MakeTree
from malformed_images import encoded, mutated, named
from tar_files import tar_of

from vit21k.errors import ImageError, ImageTreeError
from vit21k.manifest.io import read_manifest
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import UNDECODABLE
from vit21k.prep import decode_check
from vit21k.prep.decode_check import Verdict, check_images, find_undecodable
from vit21k.prep.decode_worker import verdict_on
from vit21k.prep.hash_tree import hash_tree

IMAGES = named()


def _check(contents: Sequence[bytes], num_workers: int = 1, **limits: float) -> list[Verdict]:
    rows = range(len(contents))
    return list(check_images(contents.__getitem__, rows, num_workers=num_workers, **limits))  # type: ignore[arg-type]


@pytest.mark.parametrize("what", IMAGES)
def test_every_kind_of_image_has_its_verdict(what: str) -> None:
    content, expected = IMAGES[what]

    verdict = verdict_on(content)

    assert (verdict and str(verdict[0])) == expected


def test_verdicts_come_in_order_and_the_number_of_processes_changes_none() -> None:
    contents = [content for content, _ in IMAGES.values()] * 3
    expected = [problem for _, problem in IMAGES.values()] * 3

    one, two = (_check(contents, num_workers) for num_workers in (1, 2))

    assert one == two
    assert [verdict.row for verdict in one] == list(range(len(contents)))
    assert [verdict.kind and str(verdict.kind) for verdict in one] == expected


def test_an_image_that_takes_too_long_is_given_up_and_the_next_is_decoded() -> None:
    slow = encoded(size=3000, quality=95)

    verdicts = _check([slow, encoded()], seconds=0.02)

    assert verdicts[0].kind is ProblemKind.TOO_SLOW_TO_DECODE
    assert verdicts[1].row == 1


def test_an_image_that_takes_too_much_memory_is_given_up_and_the_next_is_decoded() -> None:
    large = encoded("L", "PNG", size=6000, compress_level=0)

    verdicts = _check([large, encoded()], memory_bytes=90 << 20)

    assert verdicts[0].kind is ProblemKind.TOO_MUCH_MEMORY
    assert verdicts[1].kind is None


def test_a_decoder_that_dies_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    get = decode_check._Worker._get
    asked = []

    def kill_at_the_second(worker: decode_check._Worker, seconds: float | None) -> bytes | None:
        asked.append(seconds)
        if len(asked) == 3:  # the first answer is to the greeting
            worker._process.kill()
            worker._process.wait()
            return b""
        return get(worker, seconds)

    monkeypatch.setattr(decode_check._Worker, "_get", kill_at_the_second)

    verdicts = _check([encoded()] * 3)

    assert [verdict.kind for verdict in verdicts] == [None, ProblemKind.DECODER_DIED, None]


def test_descriptors_above_1023_are_nothing_special() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 2_000:
        pytest.skip("no more than 2,000 descriptors are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2_000, before[1]))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_024)]
    try:
        verdicts = list(check_images(lambda _row: encoded(), range(2), num_workers=1))
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

    assert verdicts == [Verdict(0, None, ""), Verdict(1, None, "")]


def test_an_image_that_cannot_be_read_has_a_verdict() -> None:
    def read(row: int) -> bytes:
        raise ImageError("gone") if row == 0 else PermissionError(13, "Permission denied")

    verdicts = list(check_images(read, range(2), num_workers=1))

    assert [verdict.kind for verdict in verdicts] == [
        ProblemKind.VANISHED,
        ProblemKind.UNREADABLE,
    ]


def test_the_processes_are_gone_afterwards() -> None:
    before = time.monotonic()
    images = check_images(lambda _row: encoded(), range(1000), num_workers=2)
    next(images)
    images.close()  # type: ignore[attr-defined]

    assert time.monotonic() - before < 30


def test_each_distinct_image_is_decoded_once_and_the_bad_ones_are_listed(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    jpeg = encoded()
    files = {"n1/a.jpg": jpeg, "n1/b.jpg": jpeg[:900], "n2/b.jpg": jpeg[:900], "n2/c.jpg": b"x"}
    root = make_tree({**files, "n3.tar": tar_of({"d.jpg": jpeg[:800], "e.jpg": encoded("L")})})
    hash_tree(root, tmp_path / "m")

    summary = find_undecodable(tmp_path / "m", num_workers=1)

    assert (summary.num_images, summary.num_decoded) == (5, 2)
    rows = read_manifest(tmp_path / "m", UNDECODABLE).to_pylist()
    assert [(row["path"], row["kind"]) for row in rows] == [
        ("n1/b.jpg", "truncated_image"),
        ("n2/c.jpg", "not_an_image"),
        ("n3/d.jpg", "truncated_image"),
    ]


def test_a_tree_that_is_gone_is_no_list_of_undecodable_images(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree({"n1/a.jpg": encoded(), "n1/b.jpg": encoded("L")})
    hash_tree(root, tmp_path / "m")
    for path in (root / "n1").iterdir():
        path.unlink()

    with pytest.raises(ImageTreeError, match="2 images in a row could not be read below"):
        find_undecodable(tmp_path / "m", num_workers=1)

    assert not (tmp_path / "m" / UNDECODABLE.file_name).exists()


def test_a_thousand_malformed_images_have_the_same_verdicts_from_one_process_and_from_two() -> None:
    contents = mutated(1000)
    started = time.monotonic()

    one, two = (_check(contents, num_workers) for num_workers in (1, 2))

    assert one == two
    assert len(one) == 1000
    kinds = {verdict.kind for verdict in one}
    assert ProblemKind.DECODER_DIED not in kinds
    assert ProblemKind.TOO_SLOW_TO_DECODE not in kinds
    assert {None, ProblemKind.TRUNCATED_IMAGE, ProblemKind.NOT_AN_IMAGE} <= kinds
    print(  # noqa: T201 (a figure for docs/internals/reliability.md)
        f"1,000 malformed images, twice: {time.monotonic() - started:.1f} s, "
        f"{sum(verdict.kind is None for verdict in one)} decoded, "
        f"{len(kinds) - 1} kinds of problems, 0 crashes, 0 hangs"
    )
