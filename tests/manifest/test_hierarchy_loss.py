"""Oracle: MIIL's formula, image by image and level by level, in dense float64."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vit21k.errors import ManifestError
from vit21k.labels.stats import write_class_tree
from vit21k.losses.hierarchical import Levels, semantic_hits, semantic_softmax_loss
from vit21k.manifest.class_lists import read_classes
from vit21k.manifest.classes import ClassList

# Two trees: 0 > (2 > (4, 5), 3), and 1 > 6; 4 and 5 are the deepest.
PARENTS = np.array([-1, -1, 0, 0, 2, 2, 1])
LINES = [[0], [1], [2, 0], [3, 0], [4, 2, 0], [5, 2, 0], [6, 1]]
LEVELS = Levels.from_parents(PARENTS)


def miils_loss(logits, lines, labels, smoothing):
    """Write out `SemanticSoftmaxLoss` for one label an image; the deepest level takes part."""
    depths = [len(line) - 1 for line in lines]
    counts = [depths.count(depth) for depth in range(max(depths) + 1)]
    total = torch.zeros((), dtype=logits.dtype)
    for depth, count in enumerate(counts):
        if count < 2:
            continue
        members = [index for index, own in enumerate(depths) if own == depth]
        factor = min(sum(counts) / sum(counts[depth:]), 20.0)
        per_image = []
        for z, label in zip(logits, labels, strict=True):
            line = lines[label][::-1]
            if len(line) <= depth:
                per_image.append(z.sum() * 0)
                continue
            target = torch.full((len(members),), smoothing / len(members), dtype=z.dtype)
            target[members.index(line[depth])] += 1 - smoothing
            per_image.append(-(target * F.log_softmax(z[members], dim=0)).sum())
        total = total + factor * torch.stack(per_image).mean()
    return total


def value_and_gradient(loss_of, logits):
    logits = logits.clone().requires_grad_()
    loss = loss_of(logits)
    loss.backward()
    return loss.detach(), logits.grad


@settings(max_examples=40)
@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    smoothing=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 100),
)
def test_with_one_label_an_image_it_is_miils_loss(labels, smoothing, seed):
    logits = 5 * torch.randn(len(labels), 7, generator=torch.Generator().manual_seed(seed)).double()
    rows, ids = torch.arange(len(labels)), torch.tensor(labels)

    ours = value_and_gradient(
        lambda z: semantic_softmax_loss(z, rows, ids, levels=LEVELS, smoothing=smoothing), logits
    )
    theirs = value_and_gradient(lambda z: miils_loss(z, LINES, labels, smoothing), logits)

    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_several_labels_share_their_image_evenly_or_by_weight():
    logits = torch.randn(1, 7, generator=torch.Generator().manual_seed(0)).double()
    rows, ids = torch.zeros(2, dtype=torch.int64), torch.tensor([4, 6])
    alone = [miils_loss(logits, LINES, [label], 0.1) for label in (4, 6)]

    def loss(weights):
        return semantic_softmax_loss(
            logits, rows, ids, levels=LEVELS, smoothing=0.1, label_weights_L=weights
        )

    torch.testing.assert_close(loss(None), (alone[0] + alone[1]) / 2)
    torch.testing.assert_close(
        loss(torch.tensor([0.3, 0.7]).double()), 0.3 * alone[0] + 0.7 * alone[1]
    )


def test_an_image_without_labels_adds_nothing():
    logits = torch.zeros(2, 7)
    rows, ids = torch.tensor([1]), torch.tensor([3])

    loss = semantic_softmax_loss(logits, rows, ids, levels=LEVELS)

    # Level 0 has two classes and weight 1, level 1 three and weight 7/5.
    assert float(loss) == pytest.approx((np.log(2) + 7 / 5 * np.log(3)) / 2, rel=1e-6)


def test_the_loss_of_bfloat16_logits_is_computed_in_float32():
    logits = torch.randn(3, 7).bfloat16()
    rows, ids = torch.arange(3), torch.tensor([0, 4, 6])

    loss = semantic_softmax_loss(logits, rows, ids, levels=LEVELS)

    assert loss.dtype == torch.float32
    assert torch.equal(loss, semantic_softmax_loss(logits.float(), rows, ids, levels=LEVELS))


def test_the_levels_of_imagenet_21k_p_are_the_eleven_of_the_paper_and_the_deepest():
    levels = Levels.of(read_classes("in21k-p"))

    assert len(levels.classes_HC) == 11 + 1
    assert len(levels.classes_HC[-1]) == 6
    assert sum(map(len, levels.classes_HC)) == 11_221
    assert levels.weights_H[0] == 1
    assert levels.weights_H[-1] == 20


def test_a_level_with_one_class_is_skipped():
    levels = Levels.from_parents(np.array([-1, 0, 0]))

    assert [classes.tolist() for classes in levels.classes_HC] == [[1, 2]]
    assert levels.ancestor_KH.tolist() == [[-1], [1], [2]]


def test_a_right_level_is_one_whose_best_class_is_above_a_label():
    logits = torch.tensor([[9.0, 0, 5, 0, 0, 5, 0], [9.0, 0, 5, 0, 0, 5, 0]])
    rows, ids = torch.tensor([0, 1, 1]), torch.tensor([4, 3, 6])

    right, of = semantic_hits(logits, rows, ids, LEVELS)

    # Image 0: animal, dog, but the wrong dog.  Image 1: one of two roots, neither at level 1.
    assert (float(right), float(of)) == (3.0, 5.0)


def test_a_written_tree_gives_the_levels_of_the_class_list(tmp_path):
    classes = ClassList(("n02084071", "n02087122", "n02088364", "n03001627", "mine"), (None,) * 5)
    write_class_tree(classes, tmp_path / "tree.json")

    read, of = Levels.read(tmp_path / "tree.json", classes), Levels.of(classes)

    assert read.weights_H == of.weights_H
    assert torch.equal(read.ancestor_KH, of.ancestor_KH)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"class_tree_list": 3, "fingerprint": ""}']
)
def test_what_is_no_tree_is_refused_by_name(tmp_path, content):
    (tmp_path / "tree.json").write_bytes(content)

    with pytest.raises(ManifestError, match=r"tree\.json` is not a tree"):
        Levels.read(tmp_path / "tree.json", ClassList(("a", "b"), (None, None)))


@pytest.mark.parametrize("lines", [[[0, 1], [1, 0]], [[0, 0], [1]], [[0, 2], [1]]])
def test_a_tree_with_a_loop_or_a_class_that_is_not_there_is_refused(tmp_path, lines):
    classes = ClassList(("a", "b"), (None, None))
    tree = {"class_tree_list": lines, "fingerprint": classes.fingerprint}
    (tmp_path / "tree.json").write_text(json.dumps(tree))

    with pytest.raises(ManifestError, match=r"tree\.json` is not a tree"):
        Levels.read(tmp_path / "tree.json", classes)


def test_the_tree_of_another_class_list_is_refused(tmp_path):
    write_class_tree(ClassList(("n02084071", "n02088364"), (None, None)), tmp_path / "tree.json")

    with pytest.raises(ManifestError, match="of another class list"):
        Levels.read(tmp_path / "tree.json", ClassList(("a", "b"), (None, None)))
    assert json.loads((tmp_path / "tree.json").read_bytes())["num_classes"] == 2
