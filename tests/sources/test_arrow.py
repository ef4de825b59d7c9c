"""Arrow files: what `datasets` saves is read at its offsets, what is wrong is listed."""

import io

import pyarrow as pa
import pytest
from table_files import arrow_of, content, named, table

from vit21k.errors import LayoutError
from vit21k.manifest.problems import ProblemKind
from vit21k.sources.arrow import read_arrow
from vit21k.sources.container import ContainerImage, LabelOptions

NAMES = ("tench", "goldfish", "shark")
ROWS = table([0, 2, 1, 0], names=NAMES)


def read(file, path="train/data-00000-of-00001.arrow"):
    """Return what is read, with contents that last."""
    return [
        item._replace(content=bytes(item.content)) if isinstance(item, ContainerImage) else item
        for item in read_arrow(file, path, LabelOptions())
    ]


def check(file):
    images = read(file)
    assert [image.content for image in images] == [content(i) for i in range(4)]
    assert [image.label for image in images] == ["tench", "shark", "goldfish", "tench"]
    for image in images:
        assert image.storage is None
        stored = file.getvalue()[image.offset : image.offset + image.num_bytes]
        assert stored == image.content


def test_images_are_located_by_their_offsets():
    check(arrow_of(ROWS))
    check(arrow_of(ROWS, batch_rows=3))


def test_a_file_with_an_index_behind_it_is_read():
    file = io.BytesIO()
    with pa.ipc.new_file(file, ROWS.schema) as writer:
        writer.write_table(ROWS)

    check(named(file))


def test_what_datasets_saves_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    )
    images = [{"bytes": content(i), "path": f"{i}.jpg"} for i in range(4)]
    rows = {"image": images, "label": [0, 2, 1, 0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")

    (file,) = (tmp_path / "saved").glob("*.arrow")
    check(named(io.BytesIO(file.read_bytes())))


def test_a_compressed_file_is_refused_with_what_to_do():
    with pytest.raises(LayoutError, match="compressed Arrow file") as refused:
        read(arrow_of(ROWS, compression="zstd"))
    assert "to_parquet" in refused.value.hint


def test_a_truncated_file_is_one_problem_wherever_it_ends():
    whole = arrow_of(ROWS, batch_rows=2).getvalue()

    for size in range(len(whole)):
        *images, problem = read(named(io.BytesIO(whole[:size])))
        assert problem.kind in (ProblemKind.ARCHIVE_TRUNCATED, ProblemKind.ARCHIVE_DAMAGED)
        assert len(images) in (0, 2, 4)


def test_false_offsets_are_a_problem():
    whole = arrow_of(ROWS).getvalue()
    first = whole.index(content(0)) - 8
    starts = whole.rindex((len(content(0))).to_bytes(4, "little"), 0, first)

    lying = whole[:starts] + b"\xff\xff\xff\x7f" + whole[starts + 4 :]
    (problem,) = read(named(io.BytesIO(lying)))

    assert problem.kind is ProblemKind.ARCHIVE_DAMAGED


def test_a_message_that_is_not_read_is_a_problem():
    labels = pa.array(["a", "b"]).dictionary_encode()

    (problem,) = read(arrow_of(pa.table({"image": [content(0), content(1)], "label": labels})))

    assert "type `dictionary`" in problem.detail
