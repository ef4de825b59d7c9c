"""Oracle: the head, then the sparse loss on its logits."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vit21k.data.loader import Batch
from vit21k.losses import sparse as chunked_loss
from vit21k.losses.sparse import chunked_multi_label_loss, multi_label_loss, wants_chunks
from vit21k.models.registry import get_model
from vit21k.recipe.load import load_recipe
from vit21k.training.objective import Objective

B, D, K = 12, 16, 50


def batch(*, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(B, D, generator=generator, dtype=dtype)
    rows = torch.tensor([0, 0, 1, 3, 4, 5, 5, 7, 11])  # some images have two labels, some none
    ids = torch.tensor([3, 49, 0, 7, 8, 16, 17, 31, 49])
    weights = torch.rand(len(rows), generator=generator, dtype=torch.float64)
    head = nn.Linear(D, K, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(K, D, generator=generator))
        head.bias.copy_(torch.randn(K, generator=generator))
    return features, head, rows, ids, weights


def loss_and_gradients(loss_of, features, head):
    leaf = features.clone().requires_grad_()
    head.zero_grad()
    loss = loss_of(leaf)
    (3 * loss).backward()
    grads = [leaf.grad, head.weight.grad]
    return loss.detach(), grads + ([] if head.bias is None else [head.bias.grad])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"smoothing": 0.2},
        {"smoothing": 0.2, "smoothing_floor": "e/K"},
        {"smoothing": 0.1, "class_reduction": "mean"},
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 7, 50, 1000, None])
def test_loss_and_gradients_are_those_of_the_head_and_the_sparse_loss(
    options, weighted, chunk_size
):
    features, head, rows, ids, weights = batch()
    args = {**options, "label_weights_L": weights if weighted else None}

    loss, grads = loss_and_gradients(
        lambda x: chunked_multi_label_loss(x, head, rows, ids, chunk_size=chunk_size, **args),
        features,
        head,
    )
    expected, expected_grads = loss_and_gradients(
        lambda x: multi_label_loss(head(x), rows, ids, **args), features, head
    )

    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-10, atol=1e-12)


def test_labels_of_one_image_and_class_add_up():
    features, head, _, _, _ = batch()
    rows, ids = torch.tensor([2, 2]), torch.tensor([9, 9])

    loss = chunked_multi_label_loss(
        features, head, rows, ids, label_weights_L=torch.tensor([0.25, 0.75])
    )

    torch.testing.assert_close(loss, chunked_multi_label_loss(features, head, rows[:1], ids[:1]))


def test_under_autocast_it_is_as_near_to_the_exact_gradient_as_the_dense_loss_is():
    features, head, rows, ids, _ = batch(dtype=torch.float32)
    exact = loss_and_gradients(lambda x: multi_label_loss(head(x), rows, ids), features, head)[1]
    errors = {}
    for name, way in {
        "plain": lambda x: multi_label_loss(head(x), rows, ids),
        "chunked": lambda x: chunked_multi_label_loss(x, head, rows, ids, chunk_size=8),
    }.items():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, grads = loss_and_gradients(way, features, head)
        assert loss.dtype == grads[1].dtype == torch.float32
        errors[name] = [
            (grad - wanted).abs().max().item() for grad, wanted in zip(grads, exact, strict=True)
        ]

    for chunked, plain in zip(errors["chunked"], errors["plain"], strict=True):
        assert chunked <= 1.5 * plain


class _Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that is made."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.values = max(self.values, result.numel())
        return result


def test_nothing_as_large_as_the_logits_is_ever_made():
    num_images, num_classes = 64, 1000
    features = torch.randn(num_images, 8, requires_grad=True)
    head = nn.Linear(8, num_classes)
    rows = ids = torch.arange(num_images)

    with _Largest() as plain:
        multi_label_loss(head(features), rows, ids).backward()
    with _Largest() as chunked:
        chunked_multi_label_loss(features, head, rows, ids, chunk_size=50).backward()

    assert plain.values == num_images * num_classes
    assert chunked.values <= max(num_images * 50, head.weight.numel())


def test_a_frozen_head_and_a_head_without_bias_have_no_gradients_to_form():
    features, _, rows, ids, _ = batch()
    head = nn.Linear(D, K, bias=False, dtype=torch.float64).requires_grad_(requires_grad=False)
    leaf = features.clone().requires_grad_()

    chunked_multi_label_loss(leaf, head, rows, ids).backward()
    expected = features.clone().requires_grad_()
    multi_label_loss(head(expected), rows, ids).backward()

    torch.testing.assert_close(leaf.grad, expected.grad)
    assert head.weight.grad is None


def test_the_gradients_are_handed_out_once():
    features, head, rows, ids, _ = batch()
    loss = chunked_multi_label_loss(features, head, rows, ids)
    loss.backward(retain_graph=True)

    with pytest.raises(RuntimeError, match="already handed out"):
        loss.backward()


def test_the_trainer_takes_it_for_large_logits_of_a_linear_head_that_is_alone():
    small = {"img_size": 32, "patch_size": 16, "embed_dim": 8, "depth": 1, "num_heads": 1}
    model = get_model("vit_tiny_patch16_224", **small, num_classes=21_841)
    with_pre_logits = get_model(
        "vit_tiny_patch16_224", **small, num_classes=21_841, representation_size=8
    )
    distilled = get_model("pit_ti_distilled_224", num_classes=21_841, img_size=64)

    assert [wants_chunks(model, num_images) for num_images in (128, 4096)] == [False, True]
    assert wants_chunks(with_pre_logits, 4096)
    assert not wants_chunks(distilled, 4096)
    assert not wants_chunks(nn.Linear(2, 2), 10**9)


def test_the_trainer_has_the_same_loss_and_gradients_either_way(monkeypatch):
    recipe = load_recipe("tiny", ["loss.smoothing=0.1", "loss.class_reduction=mean"])
    model = get_model(
        "vit_tiny_patch16_224",
        num_classes=9,
        img_size=32,
        patch_size=8,
        embed_dim=16,
        depth=1,
        num_heads=2,
        representation_size=12,
    )
    torch.nn.init.normal_(model.head.weight)
    batch = Batch(
        torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8),
        torch.tensor([0, 1, 1, 3]),
        torch.tensor([2, 0, 8, 5]),
        torch.arange(4),
    )

    def found():
        model.zero_grad()
        loss = Objective(recipe=recipe, device=torch.device("cpu")).loss(model, batch)
        loss.backward()
        return loss.detach(), [param.grad for param in model.parameters()]

    plain, plain_gradients = found()
    monkeypatch.setattr(chunked_loss, "_WORTHWHILE_VALUES", 1)
    monkeypatch.setattr(chunked_loss, "_CPU_CHUNK_VALUES", 1)
    taken = []
    right = chunked_loss._loss_and_slope
    monkeypatch.setattr(
        chunked_loss, "_loss_and_slope", lambda *args: taken.append(1) or right(*args)
    )
    chunked, chunked_gradients = found()

    assert taken
    torch.testing.assert_close(chunked, plain)
    torch.testing.assert_close(chunked_gradients, plain_gradients)
