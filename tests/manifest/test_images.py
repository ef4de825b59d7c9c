import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit21k.data.dataset import ImageDataset
from vit21k.errors import ImageError, ImageTreeError
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import ManifestHeader, open_manifest
from vit21k.manifest.schema import TRAIN
from vit21k.manifest.writer import manifest_writer

PATHS = ["cat/é ü.JPEG", "dog/日本.jpg", "cat/b.JPEG", "dog/c.JPEG"]
LABELS = [[0], [0, 2, 5], [], [5]]


def split_rows(paths, labels):
    digests = [path.encode().ljust(16)[:16] for path in paths]
    return pa.table(
        {
            "digest": pa.array(digests, pa.binary(16)),
            "path": paths,
            "num_bytes": pa.array([3] * len(paths), pa.int64()),
            "label_ids": pa.array(labels, pa.list_(pa.int64())),
        }
    )


def images_of(root, paths=PATHS, labels=LABELS):
    rows = split_rows(paths, labels)
    return ImageDataset.from_arrow(
        root, rows["path"].combine_chunks(), rows["label_ids"].combine_chunks()
    )


@pytest.fixture
def manifest(tmp_path):
    header = ManifestHeader(algorithm="xxh3_128", root=str(tmp_path / "root"), classes="x")
    classes = ClassList(tuple("abcdef"))
    with manifest_writer(TRAIN, tmp_path, header, classes) as writer:
        for part in (slice(0, 1), slice(1, 4)):
            writer.write(split_rows(PATHS[part], LABELS[part]))
    return open_manifest(tmp_path, TRAIN)


@pytest.mark.parametrize("num_bytes", [0, 1, (1 << 18) - 1, 1 << 18, 700_000])
def test_a_file_of_any_size_is_read_whole(tmp_path, num_bytes):
    content = np.random.default_rng(0).bytes(num_bytes)
    (tmp_path / "image").write_bytes(content)
    assert images_of(tmp_path, ["image"], [[0]]).read_bytes(0) == content


def test_a_folder_in_an_image_s_place_is_no_image(tmp_path):
    (tmp_path / "image").mkdir()
    with pytest.raises(ImageError, match="not there"):
        images_of(tmp_path, ["image"], [[0]]).read_bytes(0)


def test_rows_of_a_manifest_are_found_by_number(manifest, tmp_path):
    (tmp_path / "root" / "cat").mkdir(parents=True)
    (tmp_path / "root" / PATHS[0]).write_bytes(b"abc")

    images = ImageDataset.from_manifest(manifest)

    assert len(images) == 4
    assert [images.path(row) for row in range(4)] == PATHS
    assert [images.label_ids(row) for row in range(4)] == LABELS
    assert images.num_multi_label == 1
    assert images.read_bytes(0) == b"abc"


def test_an_image_tree_that_has_moved_is_found_where_it_is_now(manifest, tmp_path):
    (tmp_path / "moved" / "cat").mkdir(parents=True)
    (tmp_path / "moved" / PATHS[2]).write_bytes(b"xyz")

    images = ImageDataset.from_manifest(manifest, tmp_path / "moved")

    assert images.read_bytes(2) == b"xyz"


def test_a_manifest_that_came_from_a_list_asks_for_the_root(tmp_path):
    header = ManifestHeader(algorithm="md5", root="", classes="x")
    with manifest_writer(TRAIN, tmp_path, header, ClassList(tuple("abcdef"))) as writer:
        writer.write(split_rows(PATHS, LABELS))

    with pytest.raises(ImageTreeError, match="made from a list") as caught:
        ImageDataset.from_manifest(open_manifest(tmp_path, TRAIN))

    assert "--root" in caught.value.hint


def test_a_missing_root_is_refused_with_a_hint(manifest):
    with pytest.raises(ImageTreeError, match="not a folder") as caught:
        ImageDataset.from_manifest(manifest)

    assert "--root" in caught.value.hint


def test_a_file_that_is_gone_is_an_image_error(tmp_path):
    with pytest.raises(ImageError, match="not there"):
        images_of(tmp_path).read_bytes(1)


def test_labels_of_a_batch_come_sparse(tmp_path):
    label_rows, label_ids = images_of(tmp_path).labels_of(np.array([1, 2, 1, 3]))

    assert label_rows.tolist() == [0, 0, 0, 2, 2, 2, 3]
    assert label_ids.tolist() == [0, 2, 5, 0, 2, 5, 5]
    assert label_rows.dtype == label_ids.dtype == np.int64


@given(
    labels=st.lists(st.lists(st.integers(0, 30_000), unique=True, max_size=4), max_size=9),
    data=st.data(),
)
@settings(max_examples=80)
def test_sparse_labels_are_those_of_the_rows(labels, data, tmp_path_factory):
    images = images_of(tmp_path_factory.getbasetemp(), [str(i) for i in range(len(labels))], labels)
    rows = st.lists(st.integers(0, len(labels) - 1), max_size=6) if labels else st.just([])
    wanted = data.draw(rows)

    label_rows, label_ids = images.labels_of(np.array(wanted, dtype=np.int64))

    expected = [(place, label) for place, row in enumerate(wanted) for label in labels[row]]
    assert list(zip(label_rows.tolist(), label_ids.tolist(), strict=True)) == expected


def test_rows_of_a_part_of_an_arrow_array_are_its_own(tmp_path):
    rows = split_rows(PATHS, LABELS).slice(1, 2)
    images = ImageDataset.from_arrow(
        tmp_path,
        rows["path"].chunk(0),
        rows["label_ids"].chunk(0),
    )

    assert [images.path(row) for row in range(2)] == PATHS[1:3]
    assert [images.label_ids(row) for row in range(2)] == LABELS[1:3]


def test_an_empty_manifest_has_no_images(tmp_path):
    images = images_of(tmp_path, [], [])

    assert len(images) == 0
    assert images.num_multi_label == 0
    assert [part.tolist() for part in images.labels_of(np.array([], dtype=np.int64))] == [[], []]
