import errno
import os
import threading
from collections import deque

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vit21k.data.augment import policy_named
from vit21k.data.dataset import ImageDataset
from vit21k.data.decode import decode_rgb
from vit21k.data.loader import EvalLoader, TrainLoader
from vit21k.data.rng import uniform_values
from vit21k.data.sampler import StepSampler
from vit21k.data.transforms import EvalTransform, TrainTransform
from vit21k.errors import ImageError, ImageTreeError

NUM_IMAGES = 45
SEED = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        pixels = random.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        size = (20 + index % 7, 18 + index % 5)
        Image.fromarray(pixels).resize(size).save(root / f"{index}.jpeg")
    return root


def images_in(root, num_images=NUM_IMAGES):
    labels = [list(range(index % 3 + 1)) for index in range(num_images)]
    paths = [f"{index}.jpeg" for index in range(num_images)]
    return ImageDataset.from_arrow(root, pa.array(paths), pa.array(labels, pa.list_(pa.int64())))


def train_loader(
    root,
    *,
    num_workers=2,
    device_batch_size=8,
    on_bad_image="fail",
    max_bad_rate=1.0,
    policy=None,
    **sampling,
):
    sampling = {"global_batch_size": 20, "seed": SEED, **sampling}
    dataset = images_in(root)
    return TrainLoader(
        dataset,
        StepSampler(len(dataset), **sampling),
        TrainTransform(16),
        device_batch_size=device_batch_size,
        num_workers=num_workers,
        seed=SEED,
        policy=policy,
        on_bad_image=on_bad_image,
        max_bad_rate=max_bad_rate,
    )


def steps_of(loader, steps):
    """Return the batches of some steps as plain lists, to compare."""
    with loader:
        return [
            [tuple(part.tolist() for part in batch[:5]) for batch in loader.micro_batches(step)]
            for step in steps
        ]


@pytest.fixture(scope="module")
def expected(root):
    return steps_of(train_loader(root, num_workers=0), range(6))


def test_a_batch_is_what_sampler_draws_and_transform_say(root):
    sampler = StepSampler(NUM_IMAGES, global_batch_size=20, seed=SEED)
    rows, positions = sampler.batch(4)
    uniforms = uniform_values(SEED, positions, TrainTransform.num_uniforms)
    dataset = images_in(root)
    images = [
        TrainTransform(16)(decode_rgb(dataset.read_bytes(row)), numbers)
        for row, numbers in zip(rows.tolist(), uniforms, strict=True)
    ]

    with train_loader(root) as loader:
        batches = list(loader.micro_batches(4))

    assert [len(batch.rows_B) for batch in batches] == [8, 8, 4]
    assert torch.cat([batch.rows_B for batch in batches]).tolist() == rows.tolist()
    assert torch.cat([batch.positions_B for batch in batches]).tolist() == positions.tolist()
    assert np.array_equal(torch.cat([batch.images_BCHW for batch in batches]), np.stack(images))
    for batch in batches:
        label_rows, label_ids = dataset.labels_of(batch.rows_B.numpy())
        assert batch.label_rows_L.tolist() == label_rows.tolist()
        assert batch.label_ids_L.tolist() == label_ids.tolist()


def test_batches_are_tensors_of_bytes_and_indices(root):
    with train_loader(root) as loader:
        batch = next(loader.micro_batches(0))

    assert batch.images_BCHW.shape == (8, 3, 16, 16)
    assert batch.images_BCHW.dtype == torch.uint8
    assert {part.dtype for part in batch[1:5]} == {torch.int64}
    assert batch.step == 0


@pytest.mark.parametrize("num_workers", [1, 2, 8])
def test_threads_do_not_change_the_batches(root, expected, num_workers):
    assert steps_of(train_loader(root, num_workers=num_workers), range(6)) == expected


@given(
    steps=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    num_workers=st.sampled_from([0, 1, 2]),
)
@settings(max_examples=25)
def test_any_step_may_come_first_or_next(root, expected, steps, num_workers):
    batches = steps_of(train_loader(root, num_workers=num_workers), steps)

    assert batches == [expected[step] for step in steps]


def test_a_step_that_was_left_half_done_starts_again(root, expected):
    loader = train_loader(root)
    next(loader.micro_batches(2))

    assert steps_of(loader, [2, 3]) == expected[2:4]


def test_micro_batches_of_another_size_hold_the_same_images(root, expected):
    whole = steps_of(train_loader(root, device_batch_size=64), range(6))

    for step, micro_batches in zip(whole, expected, strict=True):
        assert len(step) == 1
        assert step[0][0] == [image for batch in micro_batches for image in batch[0]]
        assert step[0][3] == [row for batch in micro_batches for row in batch[3]]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_step_of_one_rank(root, expected, world_size):
    ranks = [
        steps_of(train_loader(root, rank=rank, world_size=world_size), range(6))
        for rank in range(world_size)
    ]

    for step in range(6):
        images = [image for rank in ranks for batch in rank[step] for image in batch[0]]
        assert images == [image for batch in expected[step] for image in batch[0]]


def test_a_smaller_last_batch_may_leave_a_rank_without_images(root):
    sampling = {"global_batch_size": 44, "drop_last": False, "world_size": 2}

    first = steps_of(train_loader(root, rank=0, **sampling), [1, 2])
    second = steps_of(train_loader(root, rank=1, **sampling), [1, 2])

    assert [len(step) for step in first] == [0, 3]
    assert [len(step[0][3]) if step else 0 for step in second] == [1, 8]


def test_images_decoded_ahead_are_bounded(root, monkeypatch):
    loader = train_loader(root, num_workers=2, device_batch_size=4)
    num_read = 0
    read_bytes = ImageDataset.read_bytes

    def counting(self, row):
        nonlocal num_read
        num_read += 1
        return read_bytes(self, row)

    monkeypatch.setattr(ImageDataset, "read_bytes", counting)
    with loader:
        next(loader.micro_batches(0))
    assert 4 <= num_read <= 4 + 2 * 2 * 32 + 4


@pytest.fixture
def damaged_root(root, tmp_path):
    for index in range(NUM_IMAGES):
        content = (root / f"{index}.jpeg").read_bytes()
        (tmp_path / f"{index}.jpeg").write_bytes(content[:100] if index == 7 else content)
    (tmp_path / "11.jpeg").unlink()
    return tmp_path


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_image_ends_the_step_with_its_path(damaged_root, num_workers):
    with (
        train_loader(damaged_root, num_workers=num_workers, global_batch_size=45) as loader,
        pytest.raises(ImageError, match=r"`(7|11)\.jpeg`: ") as caught,
    ):
        list(loader.micro_batches(0))

    assert "--set data.on_bad_image=skip" in caught.value.hint or "--root" in caught.value.hint


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_images_are_counted_and_named(root, damaged_root, num_workers):
    sampling = {"global_batch_size": 45, "num_workers": num_workers}
    (whole,) = steps_of(train_loader(root, **sampling), [0])
    loader = train_loader(damaged_root, on_bad_image="skip", **sampling)

    (left,) = steps_of(loader, [0])

    expected = [
        (row, image)
        for batch in whole
        for image, row in zip(batch[0], batch[3], strict=True)
        if row not in {7, 11}
    ]
    assert expected == [
        (row, image) for batch in left for image, row in zip(batch[0], batch[3], strict=True)
    ]
    for _, label_rows, label_ids, rows, _ in left:
        labels = [(place, label) for place, row in enumerate(rows) for label in range(row % 3 + 1)]
        assert list(zip(label_rows, label_ids, strict=True)) == labels
    assert loader.num_skipped == 2
    assert set(loader.skipped) == {"7.jpeg", "11.jpeg"}
    assert loader.skipped["11.jpeg"] == "the file is not there"


def test_a_micro_batch_of_bad_images_only_is_skipped(damaged_root):
    loader = train_loader(
        damaged_root, on_bad_image="skip", device_batch_size=1, global_batch_size=45
    )

    (left,) = steps_of(loader, [0])

    assert len(left) == 43


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_image_is_replaced_by_the_same_one_every_time(root, damaged_root, num_workers):
    sampling = {"global_batch_size": 45, "num_workers": num_workers}
    (whole,) = steps_of(train_loader(root, **sampling), [0])
    loader = train_loader(damaged_root, on_bad_image="replace", **sampling)

    (left,) = steps_of(loader, [0])
    (again,) = steps_of(train_loader(damaged_root, on_bad_image="replace", **sampling), [0])

    assert left == again
    assert [len(batch[3]) for batch in left] == [len(batch[3]) for batch in whole]
    for batch, intact in zip(left, whole, strict=True):
        assert batch[4] == intact[4]
        for row, intact_row, image, intact_image in zip(
            batch[3], intact[3], batch[0], intact[0], strict=True
        ):
            assert row not in {7, 11}
            assert (row == intact_row and image == intact_image) or intact_row in {7, 11}
    assert loader.num_skipped >= 2
    assert set(loader.skipped) == {"7.jpeg", "11.jpeg"}


@pytest.mark.parametrize("number", [errno.ELOOP, errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("on_bad_image", ["skip", "replace"])
def test_a_file_that_cannot_be_opened_is_a_bad_image(root, monkeypatch, number, on_bad_image):
    plain = ImageDataset.read_bytes

    def read_bytes(self, row):
        if row == 7:
            raise OSError(number, os.strerror(number))
        return plain(self, row)

    monkeypatch.setattr(ImageDataset, "read_bytes", read_bytes)
    loader = train_loader(root, on_bad_image=on_bad_image, global_batch_size=45)

    (batches,) = steps_of(loader, [0])

    rows = [row for batch in batches for row in batch[3]]
    assert 7 not in rows
    assert len(rows) == (44 if on_bad_image == "skip" else 45)
    assert loader.skipped == {"7.jpeg": f"it cannot be read: {os.strerror(number)}"}


def test_a_link_to_itself_is_named_where_bad_images_are_not_tolerated(root, tmp_path):
    for index in range(NUM_IMAGES):
        (tmp_path / f"{index}.jpeg").symlink_to(root / f"{index}.jpeg" if index != 7 else "7.jpeg")

    with (
        train_loader(tmp_path, global_batch_size=45) as loader,
        pytest.raises(ImageError, match=r"`7\.jpeg`: it cannot be read: Too many levels"),
    ):
        list(loader.micro_batches(0))


def test_too_many_open_files_are_not_the_fault_of_an_image(root, monkeypatch):
    def read_bytes(_self, _row):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(ImageDataset, "read_bytes", read_bytes)

    with (
        train_loader(root, on_bad_image="skip") as loader,
        pytest.raises(OSError, match="Too many open files"),
    ):
        list(loader.micro_batches(0))


@pytest.mark.parametrize("on_bad_image", ["skip", "replace"])
@pytest.mark.parametrize(("max_bad_rate", "least"), [(1.0, 100), (0.01, 10)])
def test_an_image_tree_that_is_gone_ends_the_run(
    root, monkeypatch, on_bad_image, max_bad_rate, least
):
    plain, gone = ImageDataset.read_bytes, []

    def read_bytes(self, row):
        if gone:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return plain(self, row)

    monkeypatch.setattr(ImageDataset, "read_bytes", read_bytes)
    loader = train_loader(root, on_bad_image=on_bad_image, max_bad_rate=max_bad_rate, num_workers=0)

    with loader:
        assert list(loader.micro_batches(0))
        gone.append(True)
        with pytest.raises(ImageTreeError, match=r"images in a row could not be read") as caught:
            deque(batch for step in range(1, 60) for batch in loader.micro_batches(step))

    assert int(caught.value.message.split()[0]) >= least
    assert os.strerror(errno.ESTALE) in caught.value.message
    assert "mounted" in caught.value.hint


def test_some_files_that_are_gone_do_not_make_a_tree_that_is(root, tmp_path):
    for index in range(NUM_IMAGES):
        if index % 2:
            (tmp_path / f"{index}.jpeg").symlink_to(root / f"{index}.jpeg")
    loader = train_loader(tmp_path, on_bad_image="skip", global_batch_size=45)

    batches = steps_of(loader, range(12))

    assert {row for step in batches for batch in step for row in batch[3]} == set(range(1, 45, 2))


def test_an_image_without_a_good_replacement_is_skipped(tmp_path):
    for index in range(NUM_IMAGES):
        (tmp_path / f"{index}.jpeg").write_bytes(b"no image")
    loader = train_loader(tmp_path, on_bad_image="replace")

    assert steps_of(loader, [0]) == [[]]


def test_too_many_bad_images_stop_the_run_and_are_named(root, damaged_root):
    # 2 of 45 an epoch: 44 of the first 1,000, and 0.03 * 1,000 = 30 are allowed.
    loader = train_loader(
        damaged_root, on_bad_image="skip", max_bad_rate=0.03, global_batch_size=45
    )

    with pytest.raises(ImageError, match="images could not be decoded") as caught:
        steps_of(loader, range(40))

    assert loader.num_skipped == 31
    assert "more than 3.00%" in caught.value.message
    assert "`11.jpeg`: the file is not there" in caught.value.message
    assert "`7.jpeg`" in caught.value.message


def test_a_few_bad_images_do_not_stop_the_run(damaged_root):
    loader = train_loader(
        damaged_root, on_bad_image="skip", max_bad_rate=0.05, global_batch_size=45
    )

    with loader:
        for step in range(40):
            list(loader.micro_batches(step))

    assert loader.num_skipped == 80


@pytest.mark.parametrize("num_workers", [0, 3])
def test_an_augmented_batch_depends_on_seed_and_position_only(root, num_workers):
    policy = policy_named(
        "rand_big_vision",
        num_ops=2,
        magnitude=10,
        magnitude_std=0.0,
        color_jitter=0.0,
        mean=(0.5, 0.5, 0.5),
        interpolation="bicubic",
    )
    (whole,) = steps_of(train_loader(root, policy=policy, device_batch_size=64), [3])
    parts = [
        steps_of(
            train_loader(root, policy=policy, num_workers=num_workers, rank=rank, world_size=2), [3]
        )[0]
        for rank in range(2)
    ]

    images = [image for part in parts for batch in part for image in batch[0]]
    assert images == whole[0][0]
    (plain,) = steps_of(train_loader(root, device_batch_size=64), [3])
    assert sum(a != b for a, b in zip(images, plain[0][0], strict=True)) > 15


def test_closing_joins_the_threads(root):
    before = set(threading.enumerate())
    loader = train_loader(root)
    list(loader.micro_batches(0))
    assert set(threading.enumerate()) > before

    loader.close()

    assert set(threading.enumerate()) == before


def eval_loader(root, **args):
    args = {"device_batch_size": 8, "num_workers": 2, **args}
    return EvalLoader(images_in(root), EvalTransform(16), **args)


@pytest.mark.parametrize("num_workers", [0, 1, 2, 8])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_evaluation_sees_every_image_once_in_order(root, num_workers, world_size):
    dataset = images_in(root)
    rows, images = [], []
    for rank in range(world_size):
        with eval_loader(root, num_workers=num_workers, rank=rank, world_size=world_size) as loader:
            batches = list(loader)
        assert len(batches) == len(loader)
        rows += [row for batch in batches for row in batch.rows_B.tolist()]
        images += [batch.images_BCHW for batch in batches]

    assert rows == list(range(NUM_IMAGES))
    expected = [EvalTransform(16)(decode_rgb(dataset.read_bytes(row))) for row in rows]
    assert np.array_equal(torch.cat(images), np.stack(expected))


def test_evaluation_can_be_repeated(root):
    with eval_loader(root) as loader:
        first, second = ([batch.rows_B.tolist() for batch in loader] for _ in range(2))

    assert first == second


def test_evaluation_names_a_bad_image(damaged_root):
    with (
        eval_loader(damaged_root) as loader,
        pytest.raises(ImageError, match=r"`7\.jpeg`: it cannot be decoded"),
    ):
        list(loader)


def test_evaluation_can_leave_bad_images_out(damaged_root):
    with eval_loader(damaged_root, on_bad_image="skip") as loader:
        rows = [row for batch in loader for row in batch.rows_B.tolist()]

    assert rows == [row for row in range(NUM_IMAGES) if row not in {7, 11}]
    assert loader.num_skipped == 2
