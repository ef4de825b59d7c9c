"""docs/queries.md: every query runs, and gives the columns that the page shows."""

from pathlib import Path

import pytest

duckdb = pytest.importorskip("duckdb")

from run_queries import PAGE, as_text, queries, run

from vit21k.labels.conflicts import conflicts
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val

FILES = {
    "n02084071/1.JPEG": b"dog",
    "n02084071/2.JPEG": b"dog",
    "n07639069/3.JPEG": b"dog",
    "n04394261/4.JPEG": b"target",
    "n04394261/5.JPEG": b"",
}
QUERIES = queries(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("queries")
    for name, content in FILES.items():
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / name).write_bytes(content)
    manifests = folder / "data_manifests"
    hash_tree(folder / "tree", manifests)
    relabel(manifests)
    make_val(manifests, per_class=1)
    conflicts(manifests, manifests / "labels" / "conflicts")
    return folder


def test_the_page_has_ten_queries_with_their_output() -> None:
    assert len(QUERIES) == 10
    assert all(len(output.splitlines()) > 1 for _, output in QUERIES)


@pytest.mark.parametrize(("query", "output"), QUERIES, ids=range(1, len(QUERIES) + 1))
def test_a_query_gives_rows_with_the_columns_that_are_shown(
    folder: Path, query: str, output: str
) -> None:
    columns, rows = run(query, folder)

    assert columns == output.splitlines()[0].split()
    assert rows
    assert as_text(columns, rows).splitlines()[0].split() == columns


def test_queries_say_what_the_manifests_hold(folder: Path) -> None:
    by_number = [run(query, folder)[1] for query, _ in QUERIES]

    assert by_number[0] == [(1, 1), (2, 1)]
    assert by_number[3][0][0] == "far"
    assert [row[1] for row in by_number[4]] == ["n02084071/2.JPEG", "n07639069/3.JPEG"]
    assert by_number[5] == [("n02084071/1.JPEG", "n02084071/2.JPEG")]
    assert by_number[8] == [(1, 1)]
    assert by_number[9] == [("empty", 1, "n04394261/5.JPEG")]
