import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit21k.data.sampler import ClassRows, StepSampler
from vit21k.errors import UsageError

plans = st.fixed_dictionaries(
    {
        "num_images": st.integers(1, 120),
        "global_batch_size": st.integers(1, 40),
        "seed": st.integers(0, 5),
        "drop_last": st.booleans(),
    }
).filter(lambda plan: not plan["drop_last"] or plan["num_images"] >= plan["global_batch_size"])


def all_ranks(plan, world_size):
    return [StepSampler(**plan, rank=rank, world_size=world_size) for rank in range(world_size)]


def rows_of_epoch(samplers, epoch):
    steps = samplers[0].steps_per_epoch
    return [
        row
        for step in range(epoch * steps, (epoch + 1) * steps)
        for sampler in samplers
        for row in sampler.batch(step).rows_B.tolist()
    ]


@given(plan=plans, world_size=st.integers(1, 5), epoch=st.integers(0, 3))
@settings(max_examples=100)
def test_an_epoch_holds_every_image_once_over_all_ranks(plan, world_size, epoch):
    rows = rows_of_epoch(all_ranks(plan, world_size), epoch)

    if plan["drop_last"]:
        assert len(set(rows)) == len(rows)
        assert len(rows) == plan["num_images"] - plan["num_images"] % plan["global_batch_size"]
    else:
        assert sorted(rows) == list(range(plan["num_images"]))


@given(plan=plans, world_size=st.integers(1, 7), step=st.integers(0, 200))
@settings(max_examples=100)
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(plan, world_size, step):
    alone = StepSampler(**plan).batch(step)
    parts = [sampler.batch(step) for sampler in all_ranks(plan, world_size)]

    assert np.concatenate([part.rows_B for part in parts]).tolist() == alone.rows_B.tolist()
    assert (
        np.concatenate([part.positions_B for part in parts]).tolist() == alone.positions_B.tolist()
    )
    sizes = [len(part.rows_B) for part in parts]
    whole = len(alone.rows_B) == plan["global_batch_size"]
    assert max(sizes) - min(sizes) <= (1 if whole else 3)


@given(plan=plans, step=st.integers(0, 200))
@settings(max_examples=60)
def test_a_step_is_the_same_whenever_it_is_asked_for(plan, step):
    used = StepSampler(**plan)
    for earlier in range(3):
        used.batch(earlier)

    assert used.batch(step).rows_B.tolist() == StepSampler(**plan).batch(step).rows_B.tolist()
    assert used.num_rows(step) == len(used.batch(step).rows_B)


@given(plan=plans)
@settings(max_examples=60)
def test_positions_count_the_images_since_the_start_of_the_run(plan):
    sampler = StepSampler(**plan)

    epochs = [
        [
            position
            for step in range(
                epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch
            )
            for position in sampler.batch(step).positions_B.tolist()
        ]
        for epoch in range(3)
    ]

    length = len(epochs[0])
    for epoch, positions in enumerate(epochs):
        start = epoch * (length + length % 2)
        assert positions == list(range(start, start + length))
    assert sampler.num_before(3 * sampler.steps_per_epoch) == 3 * length
    assert sampler.num_before(1) == len(sampler.batch(0).rows_B)


@given(
    plan=plans,
    pairs_of_a_rank=st.integers(1, 5),
    world_size=st.integers(1, 4),
    step=st.integers(0, 50),
)
@settings(max_examples=100)
def test_pairs_are_never_parted_by_ranks_where_the_batch_is_pairs_for_each(
    plan, pairs_of_a_rank, world_size, step
):
    plan = {**plan, "global_batch_size": 2 * pairs_of_a_rank * world_size, "drop_last": False}

    for sampler in all_ranks(plan, world_size):
        positions = sampler.batch(step).positions_B
        assert not len(positions) or positions[0] % 2 == 0


def test_epochs_and_seeds_have_their_own_order():
    sampler = StepSampler(100, global_batch_size=10, seed=0)
    other = StepSampler(100, global_batch_size=10, seed=1)

    orders = [rows_of_epoch([sampler], epoch) for epoch in range(3)] + [rows_of_epoch([other], 0)]

    assert len({tuple(order) for order in orders}) == 4


def test_each_epoch_drops_other_images():
    sampler = StepSampler(100, global_batch_size=30, seed=0)

    kept = [frozenset(rows_of_epoch([sampler], epoch)) for epoch in range(4)]

    assert sampler.steps_per_epoch == 3
    assert len(set(kept)) == 4


def test_the_last_batch_of_an_epoch_is_smaller_when_it_is_kept():
    sampler = StepSampler(10, global_batch_size=4, seed=0, drop_last=False)

    assert [sampler.num_rows(step) for step in range(6)] == [4, 4, 2, 4, 4, 2]


@pytest.mark.parametrize(("num_images", "drop_last"), [(3, True), (0, False)])
def test_too_few_images_for_one_batch_are_refused(num_images, drop_last):
    with pytest.raises(UsageError, match="not enough for a batch of 4"):
        StepSampler(num_images, global_batch_size=4, seed=0, drop_last=drop_last)


@given(
    plan=plans,
    repeats=st.integers(2, 4),
    world_size=st.integers(1, 4),
    step=st.integers(0, 60),
)
@settings(max_examples=100)
def test_repeated_images_are_the_same_for_any_number_of_ranks(plan, repeats, world_size, step):
    plan = {**plan, "repeats": repeats}
    alone = StepSampler(**plan).batch(step)
    parts = [sampler.batch(step) for sampler in all_ranks(plan, world_size)]

    assert np.concatenate([part.rows_B for part in parts]).tolist() == alone.rows_B.tolist()


@given(plan=plans, repeats=st.integers(2, 4), epoch=st.integers(0, 3))
@settings(max_examples=100)
def test_an_epoch_of_repeated_images_has_each_so_often_but_the_last(plan, repeats, epoch):
    sampler = StepSampler(**plan, repeats=repeats)

    rows = rows_of_epoch([sampler], epoch)

    counts = sorted(np.unique(rows, return_counts=True)[1].tolist())
    assert len(rows) == sampler.num_before(sampler.steps_per_epoch)
    assert set(counts[1:]) <= {repeats}
    assert counts[0] == (len(rows) % repeats or repeats)


def test_copies_of_an_image_share_a_batch_and_are_no_neighbours():
    sampler = StepSampler(300, global_batch_size=30, seed=1, repeats=3)

    rows = sampler.batch(4).rows_B

    assert sorted(np.unique(rows, return_counts=True)[1].tolist()) == [3] * 10
    assert (rows[0::2] != rows[1::2]).all()


class LabelledRows:
    """Rows with labels, and nothing else."""

    def __init__(self, labels):
        self._labels = labels

    def __len__(self):
        return len(self._labels)

    def labels_of(self, rows_B):
        pairs = [(place, i) for place, row in enumerate(rows_B) for i in self._labels[row]]
        rows, ids = zip(*pairs, strict=True) if pairs else ((), ())
        return np.array(rows, dtype=np.int64), np.array(ids, dtype=np.int64)


@st.composite
def labelled_rows(draw):
    """Draw rows of very different classes, some images in several; some classes empty."""
    sizes = draw(st.dictionaries(st.integers(0, 12), st.integers(1, 20), min_size=1, max_size=6))
    labels = [[label] for label, size in sizes.items() for _ in range(size)]
    for row in draw(st.lists(st.integers(0, len(labels) - 1), max_size=4)):
        labels[row] = sorted({*labels[row], draw(st.sampled_from(sorted(sizes)))})
    return LabelledRows(labels)


@given(images=labelled_rows(), seed=st.integers(0, 2**40), num_rounds=st.integers(1, 40))
@settings(max_examples=60)
def test_balanced_classes_come_equally_often_and_their_images_in_turn(images, seed, num_rounds):
    class_rows = ClassRows.from_images(images)
    K = class_rows.num_classes

    rows = class_rows.rows(np.arange(num_rounds * K), seed)

    # Every round has one image of each class: counted by a matching of rows to classes.
    members = {}
    for row, labels in enumerate(images._labels):
        for label in labels:
            members.setdefault(label, []).append(row)
    for start in range(0, len(rows), K):
        expected = [
            sum(row in members[label] for row in rows[start : start + K]) for label in members
        ]
        assert min(expected) >= 1
    if all(len(labels) == 1 for labels in images._labels):
        for label, own in members.items():
            visits = [row for row in rows.tolist() if row in own]
            assert len(visits) == num_rounds, label
            for start in range(0, num_rounds - len(own) + 1, len(own)):
                assert sorted(visits[start : start + len(own)]) == own


@given(
    images=labelled_rows(),
    world_size=st.integers(1, 3),
    step=st.integers(0, 60),
    repeats=st.integers(1, 3),
)
@settings(max_examples=60)
def test_balanced_batches_are_the_same_for_any_number_of_ranks(images, world_size, step, repeats):
    plan = {
        "num_images": len(images),
        "global_batch_size": min(6, len(images)),
        "seed": 3,
        "repeats": repeats,
        "class_rows": ClassRows.from_images(images),
    }
    alone = StepSampler(**plan).batch(step)
    parts = [sampler.batch(step) for sampler in all_ranks(plan, world_size)]

    assert np.concatenate([part.rows_B for part in parts]).tolist() == alone.rows_B.tolist()
    assert max(alone.rows_B) < len(images)


def test_balanced_rounds_have_orders_of_their_own():
    class_rows = ClassRows.from_images(LabelledRows([[label] for label in range(50)]))

    rounds = class_rows.rows(np.arange(100), seed=0).reshape(2, 50)

    assert sorted(rounds[0].tolist()) == sorted(rounds[1].tolist()) == list(range(50))
    assert rounds[0].tolist() != rounds[1].tolist()


def test_images_without_any_label_cannot_be_balanced():
    with pytest.raises(UsageError, match="no image has a label"):
        ClassRows.from_images(LabelledRows([[], []]))
