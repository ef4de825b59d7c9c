import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit21k.data.sampler import StepSampler
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
@settings(max_examples=100, deadline=None)
def test_an_epoch_holds_every_image_once_over_all_ranks(plan, world_size, epoch):
    rows = rows_of_epoch(all_ranks(plan, world_size), epoch)

    if plan["drop_last"]:
        assert len(set(rows)) == len(rows)
        assert len(rows) == plan["num_images"] - plan["num_images"] % plan["global_batch_size"]
    else:
        assert sorted(rows) == list(range(plan["num_images"]))


@given(plan=plans, world_size=st.integers(1, 7), step=st.integers(0, 200))
@settings(max_examples=100, deadline=None)
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(plan, world_size, step):
    alone = StepSampler(**plan).batch(step)
    parts = [sampler.batch(step) for sampler in all_ranks(plan, world_size)]

    assert np.concatenate([part.rows_B for part in parts]).tolist() == alone.rows_B.tolist()
    assert (
        np.concatenate([part.positions_B for part in parts]).tolist() == alone.positions_B.tolist()
    )
    sizes = [len(part.rows_B) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@given(plan=plans, step=st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_a_step_is_the_same_whenever_it_is_asked_for(plan, step):
    used = StepSampler(**plan)
    for earlier in range(3):
        used.batch(earlier)

    assert used.batch(step).rows_B.tolist() == StepSampler(**plan).batch(step).rows_B.tolist()
    assert used.num_rows(step) == len(used.batch(step).rows_B)


@given(plan=plans)
@settings(max_examples=60, deadline=None)
def test_positions_count_the_images_since_the_start_of_the_run(plan):
    sampler = StepSampler(**plan)

    positions = [
        position
        for step in range(3 * sampler.steps_per_epoch)
        for position in sampler.batch(step).positions_B.tolist()
    ]

    assert positions == list(range(len(positions)))


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
