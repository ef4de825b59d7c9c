"""Five training steps from Google's weights, against the same five with Google's code and optax.

Ours are in float64, so that all of the difference is theirs, of float32, on every processor.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from vit21k.checkpoint.load import load_model
from vit21k.losses.sparse import multi_label_loss, single_label_loss
from vit21k.optim.optimizers import build_optimizers, set_lr
from vit21k.recipe.schema import OptimSection

DATA = Path(__file__).parents[1] / "fixtures" / "google_vit"
SECTIONS = {
    "sgd": OptimSection(kind="sgd", lr=0.01, momentum=0.9),
    "adamw": OptimSection(kind="adamw", lr=1e-3, weight_decay=0.1, decay_params="all"),
}


def images():
    pixels = np.load(DATA / "ViT-tiny-google.images_u8_nhwc.npy")
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2).double() - 127.5) / 127.5


def labels_of(loss_kind, multihot):
    """Return rows and ids: of all labels, or of the first of each image."""
    if loss_kind == "sigmoid":
        return torch.from_numpy(multihot).nonzero(as_tuple=True)
    return torch.arange(len(multihot)), torch.from_numpy(multihot.argmax(axis=1))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("loss_kind", ["sigmoid", "softmax"])
def test_losses_and_weights_are_those_of_googles_code(loss_kind, optimizer):
    with np.load(DATA / "ViT-tiny-google.five_steps.npz") as theirs:
        multihot = theirs["multihot"]
        their_losses = theirs[f"{loss_kind}.{optimizer}.losses"]
        their_logits = theirs[f"{loss_kind}.{optimizer}.logits"]
    model, _ = load_model(DATA / "ViT-tiny-google.npz")
    model.double().train()
    optimizers = build_optimizers(model, SECTIONS[optimizer])
    set_lr(optimizers, 1.0)
    loss_of = multi_label_loss if loss_kind == "sigmoid" else single_label_loss
    rows, ids = labels_of(loss_kind, multihot)

    losses = []
    for _ in range(5):
        loss = loss_of(model(images()), rows, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in optimizers:
            each.step()
            each.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        logits = model(images())

    np.testing.assert_allclose(losses, their_losses, rtol=2e-6)
    np.testing.assert_allclose(logits.numpy(), their_logits, rtol=1e-5, atol=1e-5)
