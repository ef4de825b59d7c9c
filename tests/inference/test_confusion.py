from collections import Counter

import numpy as np
import pytest
import torch

from vit21k.data.loader import Batch
from vit21k.distributed import World
from vit21k.inference import metrics
from vit21k.inference.metrics import Confusion

NUM_IMAGES, NUM_CLASSES = 300, 6


def split(seed=0):
    rng = np.random.default_rng(seed)
    labels = [
        sorted(rng.choice(NUM_CLASSES, rng.integers(0, 3), replace=False).tolist())
        for _ in range(NUM_IMAGES)
    ]
    return torch.from_numpy(rng.normal(size=(NUM_IMAGES, NUM_CLASSES))).float(), labels


def add(found, logits, labels, rows):
    part = labels[rows]
    label_rows = torch.tensor([r for r, ids in enumerate(part) for _ in ids], dtype=torch.int64)
    label_ids = torch.tensor([i for ids in part for i in ids], dtype=torch.int64)
    found.update(logits[rows], Batch(label_rows, label_rows, label_ids, label_rows))


def plainly(logits, labels):
    pairs = Counter(
        (label, int(top))
        for top, ids in zip(logits.argmax(1), labels, strict=True)
        if int(top) not in ids
        for label in ids
    )
    return sorted(((*pair, n) for pair, n in pairs.items()), key=lambda pair: (-pair[2], pair))


@pytest.mark.parametrize("waiting", [1, 1 << 20])
def test_pairs_are_counted_and_ordered(monkeypatch, waiting):
    monkeypatch.setattr(metrics, "_MOST_WAITING", waiting)
    logits, labels = split()
    found = Confusion(NUM_CLASSES)

    for start in range(0, NUM_IMAGES, 32):
        add(found, logits, labels, slice(start, start + 32))

    wanted = plainly(logits, labels)
    assert found.top(5) == wanted[:5]
    assert found.top(1000) == wanted


def test_nothing_seen_is_no_pairs():
    found = Confusion(NUM_CLASSES)
    found.reduce(World())

    assert found.top(5) == []


def test_processes_with_different_numbers_of_pairs_add_up():
    logits, labels = split()
    shares = [Confusion(NUM_CLASSES), Confusion(NUM_CLASSES)]
    add(shares[0], logits, labels, slice(20))
    add(shares[1], logits, labels, slice(20, None))
    for share in shares:
        share._merge()
    keys, counts = ([getattr(s, name) for s in shares] for name in ("_keys_P", "_counts_P"))
    sizes = torch.tensor([len(values) for values in keys])

    answers = [sizes, torch.cat(keys), sizes, torch.cat(counts)]

    class Both(World):
        def all_reduce_sum(self, tensor):
            answer = answers.pop(0)
            inside = tensor != 0
            assert answer[inside].equal(tensor[inside])  # this process's part of it
            return answer

    shares[1].reduce(Both(rank=1, world_size=2))

    assert shares[1].top(1000) == plainly(logits, labels)
