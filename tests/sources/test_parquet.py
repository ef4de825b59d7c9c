"""Parquet files: what writers of all kinds store is read, what is wrong is listed."""

import io
import math
import random
import subprocess
import sys
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from table_files import content, named, parquet_of, table

from vit21k.errors import ImageError, LayoutError
from vit21k.manifest.problems import ProblemKind
from vit21k.sources import parquet
from vit21k.sources.container import ContainerImage, LabelOptions
from vit21k.sources.parquet import ParquetRows, read_parquet
from vit21k.sources.read import ImageReader

NAMES = ("tench", "goldfish", "shark")
LABELS = [0, 2, 1, 0]


def read(file, labels=None, path="train-00000-of-00001.parquet"):
    """Return what is read, with contents that last."""
    items = read_parquet(file, path, labels or LabelOptions())
    return [_kept(item) for item in items]


def _kept(item):
    if not isinstance(item, ContainerImage):
        return item
    assert memoryview(item.content).format == "B"
    return item._replace(content=bytes(item.content))


def check(file, labels=None, expected=tuple(NAMES[label] for label in LABELS)):
    """Check contents, labels and locators of the four images of `table(LABELS)`."""
    images = read(file, labels)
    assert [image.content for image in images] == [content(i) for i in range(len(expected))]
    assert [image.label for image in images] == list(expected)
    rows = ParquetRows(lambda: file)
    for image in reversed(images):
        start, stop = image.offset, image.offset + image.num_bytes
        if image.storage is None:
            assert file.getvalue()[start:stop] == image.content
        else:
            assert rows.read(image.storage.removeprefix("parquet:"), start) == image.content
    return images


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd", "brotli", "lz4", "gzip"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False},
        {"row_group_size": 1, "write_page_index": True, "write_page_checksum": True},
        {"data_page_version": "2.0", "use_dictionary": False, "data_page_size": 16},
        {"use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}},
    ],
)
def test_every_image_is_read_and_found_again(codec, options):
    file = parquet_of(table(LABELS, names=NAMES), compression=codec, **options)

    images = check(file)

    is_plain = codec == "none" and options != {} and "column_encoding" not in options
    is_plain &= "row_group_size" not in options  # which leaves the dictionary on
    assert {image.storage for image in images} == {None if is_plain else "parquet:image"}
    assert images[1].path == "train-00000-of-00001.parquet/00000001/x_1.JPEG"
    assert {image.split for image in images} == {"train"}


@pytest.mark.parametrize("dtype", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_images_may_be_a_column_of_bytes_and_labels_names(dtype):
    rows = pa.table(
        {
            "jpg": pa.array([content(i) for i in range(3)], dtype),
            "class": pa.array(["b", "a", "b"]).dictionary_encode(),
        }
    )

    try:
        content_of_file = parquet_of(rows, compression="none", use_dictionary=False)
    except pa.ArrowNotImplementedError:
        pytest.skip(f"this version of pyarrow does not write {dtype}")
    images = check(content_of_file, None, "bab")

    assert images[0].path == "train-00000-of-00001.parquet/00000000.jpg"
    assert images[0].storage is None


def test_what_pandas_and_duckdb_write_is_read(tmp_path):
    frame = pd.DataFrame(
        {"image": [content(i) for i in range(3)], "label": pd.Categorical(["a", None, "b"])}
    )
    frame.to_parquet(tmp_path / "pandas.parquet")
    for codec in ("uncompressed", "zstd"):
        duckdb.sql(
            f"COPY (SELECT * FROM '{tmp_path}/pandas.parquet') TO '{tmp_path}/{codec}.parquet' "
            f"(COMPRESSION {codec})"
        )

    for path in sorted(tmp_path.iterdir()):
        check(named(io.BytesIO(path.read_bytes())), None, ["a", None, "b"])


def test_datasets_loads_the_same_rows_with_the_same_labels(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    )
    images = [{"bytes": content(i), "path": f"{i}.jpg"} for i in range(5)]
    rows = {"image": images, "label": [2, 0, 1, 0, 2]}
    written = datasets.Dataset.from_dict(rows, features=features)
    written.to_parquet(tmp_path / "train-00000-of-00001.parquet", batch_size=2)

    loaded = datasets.load_dataset(
        "parquet", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / "cache")
    ).cast_column("image", datasets.Image(decode=False))
    ours = read(named(io.BytesIO((tmp_path / "train-00000-of-00001.parquet").read_bytes())))

    assert [(row["image"]["bytes"], NAMES[row["label"]]) for row in loaded] == [
        (image.content, image.label) for image in ours
    ]


def test_rows_without_an_image_or_a_class_are_listed_or_unlabelled():
    images = [
        {"bytes": content(0), "path": None},
        {"bytes": None, "path": "far/away.jpg"},
        None,
        {"bytes": b"", "path": "empty.jpg"},
        {"bytes": content(4), "path": "x/n1.JPEG"},
        {"bytes": content(5), "path": "\x1b[31m"},
    ]
    rows = table([-1, 0, 0, 0, 7, None], names=NAMES, images=images)

    for codec in ("none", "zstd"):
        found = read(parquet_of(rows, compression=codec, use_dictionary=False), path="a.parquet")

        assert found[0].path == "a.parquet/00000000.jpg"
        assert found[0].label is None
        assert [item[:2] for item in found[1:5]] == [
            ("a.parquet/00000001/away.jpg", ProblemKind.IMAGE_NOT_STORED),
            ("a.parquet/00000002.jpg", ProblemKind.EMPTY),
            ("a.parquet/00000003/empty.jpg", ProblemKind.EMPTY),
            ("a.parquet/00000004/n1.JPEG", ProblemKind.LABEL_MISSING),
        ]
        assert "class index 7, of 3 classes" in found[4].detail
        assert (found[5].path, found[5].label) == ("a.parquet/00000005.jpg", None)


@pytest.mark.parametrize(
    "name",
    ["../../evil.jpg", "a/..", "..", "/etc/passwd", "a\\..\\..", "a\nb", "x" * 300, "", None],
)
def test_the_path_that_an_image_is_stored_with_does_not_lead_out(name):
    images = [{"bytes": content(1), "path": name}]

    (image,) = read(parquet_of(table(["cat"], images=images)), path="x.parquet")

    assert image.path in {f"x.parquet/00000000{end}" for end in ("/evil.jpg", "/passwd", ".jpg")}


def test_a_list_of_labels_is_several_classes():
    rows = table([[0], [2, 1], [-1], []], names=NAMES)

    labels = [item.label for item in read(parquet_of(rows))]

    assert labels == ["tench", ("shark", "goldfish"), None, None]


def test_a_zero_or_one_for_each_class_is_no_list_of_labels():
    rows = table([[0, 0, 1]], names=NAMES)

    with pytest.raises(LayoutError, match="has a label twice"):
        read(parquet_of(rows))


def test_integers_without_names_need_a_class_list():
    rows = table(LABELS)

    with pytest.raises(LayoutError, match="without class names") as refused:
        read(parquet_of(rows))
    assert "--classes" in refused.value.hint
    check(parquet_of(rows), LabelOptions(class_names=NAMES))
    with pytest.raises(LayoutError, match="not in the class list"):
        read(parquet_of(rows), LabelOptions(class_names=NAMES[:2]))


def test_floating_point_labels_are_pandas_for_missing_ones():
    rows = table([1.0, math.nan, 0.5], names=NAMES)

    found = read(parquet_of(rows))

    assert [found[0].label, found[1].label] == ["goldfish", None]
    assert found[2].kind is ProblemKind.LABEL_MISSING


def test_a_class_list_renames_classes_by_index_or_must_hold_their_names():
    file = parquet_of(table(LABELS, names=NAMES))
    wnids = ("n01440764", "n01443537", "n01484850")

    check(file, LabelOptions(class_names=wnids), [wnids[label] for label in LABELS])
    check(file, LabelOptions(class_names=("shark", "eagle", "tench", "goldfish")))  # by name
    for wrong in (wnids[:2], ("tench", "goldfish", "eagle")):
        with pytest.raises(LayoutError, match=r"and they have \d in common"):
            read(file, LabelOptions(class_names=wrong))


@pytest.mark.parametrize(
    ("label_from", "expected"), [("folder", "cat"), ("parent", "pets"), ("top", "x")]
)
def test_the_class_may_be_in_the_path(label_from, expected):
    file = parquet_of(pa.table({"image": [content(0)]}), use_dictionary=False)

    found = read(file, LabelOptions(label_from=label_from), path="x/pets/cat.parquet")

    assert found[0].label == expected


def test_rows_of_a_damaged_row_group_are_a_problem_and_others_are_read():
    rows = table(LABELS, names=NAMES)
    file = parquet_of(rows, row_group_size=2, compression="snappy")
    chunk = pq.ParquetFile(file).metadata.row_group(0).column(0)
    damaged = bytearray(file.getvalue())
    damaged[chunk.dictionary_page_offset : chunk.data_page_offset] = b"\xee" * (
        chunk.data_page_offset - chunk.dictionary_page_offset
    )

    found = read(named(io.BytesIO(damaged)))

    assert [type(item).__name__ for item in found] == [
        "Problem", "ContainerImage", "ContainerImage",
    ]  # fmt: skip
    assert found[0].kind is ProblemKind.ARCHIVE_DAMAGED
    assert found[0].detail.startswith("row group 0: ")
    assert found[2].path.endswith("/00000003/x_3.JPEG")
    with pytest.raises(ImageError, match="damaged"):
        ParquetRows(lambda: named(io.BytesIO(damaged))).read("image", 0)


def test_a_truncated_file_is_one_problem_wherever_it_ends():
    whole = parquet_of(table(LABELS, names=NAMES)).getvalue()

    for size in range(len(whole)):
        (problem,) = read(named(io.BytesIO(whole[:size])))
        assert problem.kind in (ProblemKind.ARCHIVE_TRUNCATED, ProblemKind.ARCHIVE_DAMAGED)


def test_images_are_read_below_a_root_like_all_others(tmp_path):
    file = parquet_of(table(LABELS, names=NAMES))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.parquet").write_bytes(file.getvalue())
    reader = ImageReader(tmp_path, max_open=1)
    num_bytes = len(content(2))

    assert reader.read("", "a/b.parquet", 2, num_bytes, "parquet:image") == content(2)
    for wrong in (
        ("a/b.parquet", 2, num_bytes - 1, "parquet:image"),
        ("a/b.parquet", 2, num_bytes, "parquet:photo"),
        ("a/gone.parquet", 2, num_bytes, "parquet:image"),
    ):
        with pytest.raises(ImageError):
            reader.read("", *wrong)


class _Remote(io.BytesIO):
    """A file that gives fewer bytes than it is asked for, as sockets do."""

    name = "remote"

    def readinto(self, buffer):
        return super().readinto(memoryview(buffer)[:100])


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_source_may_give_fewer_bytes_than_it_is_asked_for(codec):
    file = parquet_of(table(LABELS, names=NAMES), compression=codec, use_dictionary=False)

    check(_Remote(file.getvalue()))


def test_a_row_that_is_not_there_is_an_error():
    file = parquet_of(table([0], images=[None]), compression="zstd")
    rows = ParquetRows(lambda: file)

    for row in (-1, 0, 1):
        with pytest.raises(ImageError, match="holds another image, or none"):
            rows.read("image", row)


def test_files_that_unpack_to_far_more_than_they_hold_are_listed(monkeypatch):
    monkeypatch.setattr(parquet, "RATIO_COUNTS_FROM", 1 << 16)
    zeros = [{"bytes": bytes(1 << 20), "path": None}]
    many = [{"bytes": content(100), "path": None}] * 5000

    for images in (zeros, many):
        rows = table(["a"] * len(images), images=images)
        found = read(parquet_of(rows, compression="zstd"))
        assert found[-1].kind is ProblemKind.ARCHIVE_BOMB
    assert len(found) < 5000


def test_a_file_that_claims_more_rows_than_bytes_is_a_bomb():
    nulls = pa.table(
        {"image": pa.nulls(200_000, pa.binary()), "label": pa.nulls(200_000, "string")}
    )

    (problem,) = read(parquet_of(nulls.cast(pa.schema([("image", "binary"), ("label", "string")]))))

    assert problem.kind is ProblemKind.ARCHIVE_BOMB


def test_rows_read_in_any_order_are_decoded_within_bounds(monkeypatch):
    monkeypatch.setattr(parquet, "_GROUP_BYTES", 3000)
    monkeypatch.setattr(parquet, "_CACHE_BYTES", 4000)
    monkeypatch.setattr(parquet, "_MAX_BATCH_ROWS", 2)
    images = [{"bytes": content(i), "path": None} for i in range(40)]
    content_of_file = parquet_of(table(["a"] * 40, images=images), row_group_size=20).getvalue()
    files = [ParquetRows(lambda: named(io.BytesIO(content_of_file))) for _ in range(3)]
    order = [(file, row) for file in files for row in range(40)]
    random.Random(1).shuffle(order)

    for file, row in order:
        assert file.read("image", row) == content(row)

    held = parquet._decoded_groups._groups.values()
    assert sum(group.num_bytes for group in held) < 4000 + 3000


def _mutated(whole, seed):
    """Return *whole* with some bytes replaced, mostly in its footer and headers of pages."""
    rng = random.Random(seed)
    content = bytearray(whole)
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for _ in range(rng.choice([1, 2, 8])):
        at = rng.choice([rng.randrange(4, 60), rng.randrange(footer, len(content))])
        some = rng.choice([b"\xff\xff\xff\xff\x0f", b"\0", b"\x7f", rng.randbytes(3)])
        content[at : at + len(some)] = some
    return bytes(content)


HOSTILE = """
import resource, sys, time
sys.path[:0] = sys.argv[1:]
from test_parquet import LABELS, NAMES, _mutated, parquet_of, read, table
from table_files import named
import io
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
files = [
    parquet_of(table(LABELS, names=NAMES), compression=codec, use_dictionary=bool(rows)).getvalue()
    for codec in ("none", "snappy", "zstd") for rows in (0, 1)
]
start = time.monotonic()
for seed in range(300):
    whole = files[seed % len(files)]
    items = read(named(io.BytesIO(_mutated(whole, seed))))
    assert items, seed
assert time.monotonic() - start < 60
"""


def test_hostile_files_are_listed():
    """In a process of its own, which pyarrow may end."""
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    result = subprocess.run(
        [sys.executable, "-c", HOSTILE, *folders], capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stderr
