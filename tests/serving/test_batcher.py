import asyncio
import threading

import numpy as np
import torch

from vit21k.serving.batcher import Batcher


class Model:
    """Scores an image with its own first value; notes the sizes of its batches."""

    def __init__(self, *, held=False):
        self.sizes = []
        self.may_go = threading.Event()
        if not held:
            self.may_go.set()

    def __call__(self, images):
        self.sizes.append(len(images))
        assert self.may_go.wait(10)
        if (images == 13).any():
            raise ValueError("thirteen")
        return torch.from_numpy(images[:, 0, 0, :1].astype(np.float32))


def image(value):
    return np.full((3, 2, 2), value, dtype=np.uint8)


def answers_of(batcher, ask):
    """Run *ask* while the batcher runs."""

    async def main():
        running = asyncio.create_task(batcher.run())
        try:
            return await asyncio.wait_for(ask(), 10)
        finally:
            running.cancel()

    return asyncio.run(main())


def asked(batcher, values):
    async def ask():
        found = await asyncio.gather(
            *(batcher.score(image(value)) for value in values), return_exceptions=True
        )
        return [answer if isinstance(answer, Exception) else answer.item() for answer in found]

    return ask


def test_images_that_come_together_go_together_and_each_gets_its_own_answer():
    model = Model()
    batcher = Batcher(model, max_batch_size=4, max_wait_seconds=0.2)

    found = answers_of(batcher, asked(batcher, range(10)))

    assert found == list(range(10))
    assert model.sizes == [4, 4, 2]
    assert (batcher.num_batches, batcher.num_images) == (3, 10)


def test_a_single_image_does_not_wait_long_for_others():
    batcher = Batcher(model := Model(), max_batch_size=4, max_wait_seconds=0.01)

    assert answers_of(batcher, asked(batcher, [7])) == [7]
    assert model.sizes == [1]


def test_those_that_come_while_the_model_computes_are_the_next_batch():
    model = Model(held=True)
    batcher = Batcher(model, max_batch_size=100, max_wait_seconds=0.0)

    async def ask():
        first = asyncio.create_task(batcher.score(image(1)))
        while not model.sizes:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher.score(image(value))) for value in range(2, 9)]
        await asyncio.sleep(0.01)
        model.may_go.set()
        return [(await task).item() for task in (first, *others)]

    assert answers_of(batcher, ask) == list(range(1, 9))
    assert model.sizes == [1, 7]


def test_an_error_is_raised_for_its_batch_only():
    batcher = Batcher(Model(), max_batch_size=2, max_wait_seconds=0.2)

    found = answers_of(batcher, asked(batcher, [1, 13, 2, 3]))

    assert [str(answer) for answer in found] == ["thirteen", "thirteen", "2.0", "3.0"]


def test_who_has_gone_is_not_computed():
    model = Model(held=True)
    batcher = Batcher(model, max_batch_size=100, max_wait_seconds=0.0)

    async def ask():
        first = asyncio.create_task(batcher.score(image(1)))
        while not model.sizes:
            await asyncio.sleep(0.001)
        gone = [asyncio.create_task(batcher.score(image(value))) for value in (2, 3)]
        stays = asyncio.create_task(batcher.score(image(4)))
        await asyncio.sleep(0.01)
        for task in (first, *gone):  # the first while it is computed
            task.cancel()
        model.may_go.set()
        return (await stays).item()

    assert answers_of(batcher, ask) == 4
    assert model.sizes == [1, 1]
