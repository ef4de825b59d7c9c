"""Oracle: DeiT's `DistillationLoss`, written out in plain torch."""

import json

import pytest
import torch
from small_run import CLASSES, save_run
from torch.nn import functional as F

from vit21k.checkpoint.load import load_model
from vit21k.checkpoint.model_folder import digest_of_tensors
from vit21k.data.transforms import normalise
from vit21k.errors import CheckpointError, UsageError
from vit21k.manifest.classes import ClassList
from vit21k.models.registry import build_model, get_model, model_args
from vit21k.recipe.load import load_recipe
from vit21k.recipe.schema import DistillSection
from vit21k.training.objective import (
    build_objective,
    distillation_loss,
    distilled_loss,
    open_teacher,
)
from vit21k.training.reporter import Reporter

CPU = torch.device("cpu")
SMALL_PIT = {"img_size": 32, "base_dims": [8, 8], "depth": [1, 1], "heads": [1, 2]}


def deits_loss(outputs, outputs_kd, labels, teacher_outputs, kind, alpha, tau):
    """Write out `DistillationLoss.forward` of facebookresearch/deit."""
    base_loss = F.cross_entropy(outputs, labels)
    if kind == "soft":
        loss_kd = (
            F.kl_div(
                F.log_softmax(outputs_kd / tau, dim=1),
                F.log_softmax(teacher_outputs / tau, dim=1),
                reduction="sum",
                log_target=True,
            )
            * (tau * tau)
            / outputs_kd.numel()
        )
    else:
        loss_kd = F.cross_entropy(outputs_kd, teacher_outputs.argmax(dim=1))
    return base_loss * (1 - alpha) + loss_kd * alpha


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("teacher") / "run", loss_kind="softmax")


@pytest.fixture(scope="module")
def images():
    return 255 * torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("two_heads", [False, True])
def test_the_loss_and_its_gradient_are_deits(teacher_path, images, kind, two_heads):
    teacher = open_teacher(str(teacher_path), CLASSES, CPU)
    labels = torch.tensor([0, 1, 2, 1, 0])
    logits = torch.randn((2, 5, 3) if two_heads else (5, 3)).requires_grad_()
    outputs, outputs_kd = logits if two_heads else (logits, logits)
    teacher_logits = teacher.model(normalise(images, (0.5,) * 3, (0.5,) * 3))

    ours = distilled_loss(
        logits,
        teacher.logits_of(images, "fp32"),
        lambda logits: F.cross_entropy(logits, labels),
        DistillSection(kind=kind, alpha=0.3, tau=2.0),
    )
    theirs = deits_loss(outputs, outputs_kd, labels, teacher_logits, kind, 0.3, 2.0)

    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)), rtol=1e-5, atol=1e-8
    )


def test_the_teacher_sees_images_as_it_learnt_them_and_keeps_its_weights(tmp_path, images):
    path = save_run(tmp_path / "run", proj_drop_rate=0.5)
    teacher = open_teacher(str(path), CLASSES, CPU)
    before = digest_of_tensors(teacher.model.state_dict())
    wide = torch.rand(2, 3, 24, 24) * 255

    once, twice = (teacher.logits_of(images, "fp32") for _ in range(2))

    assert torch.equal(once, twice)  # no dropout
    assert not once.requires_grad
    assert not any(param.requires_grad for param in teacher.model.parameters())
    assert teacher.logits_of(wide, "fp32").shape == (2, 3)  # another size is made its own
    assert digest_of_tensors(load_model(path)[0].state_dict()) == teacher.fingerprint == before


def test_another_teacher_has_another_fingerprint(tmp_path, teacher_path):
    other, _ = load_model(teacher_path)
    with torch.no_grad():
        other.head.bias[0] += 1e-7

    same = load_model(teacher_path)[0]
    assert digest_of_tensors(other.state_dict()) != digest_of_tensors(same.state_dict())


def test_a_teacher_of_other_classes_is_refused(teacher_path):
    with pytest.raises(UsageError, match="knows 3 classes, the images have 2"):
        open_teacher(str(teacher_path), ClassList(("a", "b"), (None, None)), CPU)


def test_a_missing_teacher_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="gone"):
        open_teacher(str(tmp_path / "gone"), CLASSES, CPU)


def test_a_distilled_pit_answers_with_both_heads_in_training_alone():
    args = model_args("pit_ti_distilled_224", num_classes=3, **SMALL_PIT)
    model, both = build_model(args), build_model(args, both_heads=True)
    both.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)

    together = model.train()(images)
    apart, evaluated = both.train()(images), both.eval()(images)

    assert apart.shape == (2, 2, 3)
    torch.testing.assert_close(apart.mean(dim=0), together)
    torch.testing.assert_close(evaluated, together)


def test_soft_distillation_of_equal_models_is_nothing():
    logits = torch.randn(4, 7)

    assert float(distillation_loss(logits, logits, kind="soft", tau=3.0)) == 0


def test_what_is_assumed_of_a_teacher_is_warned_of(tmp_path):
    model = get_model("vit_tiny_patch16_224", num_classes=3, embed_dim=192, depth=1)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    config = {"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    fields = ["loss.kind=softmax", "distill.kind=hard", f"distill.teacher={tmp_path}"]
    warnings = []

    class Warnings(Reporter):
        def warn(self, text):
            warnings.append(text)

    build_objective(load_recipe("tiny", fields), CLASSES, CPU, Warnings())

    assert any("the teacher: nothing says how images are prepared" in text for text in warnings)


def test_what_a_teacher_does_not_state_is_set_in_an_export(tmp_path):
    weights = {
        name: tensor.clone()
        for name, tensor in get_model("vit_tiny_patch16_224", num_classes=3, img_size=32)
        .state_dict()
        .items()
    }
    torch.save(weights, tmp_path / "bare.pth")
    with pytest.raises(UsageError, match="how many attention heads") as raised:
        open_teacher(str(tmp_path / "bare.pth"), CLASSES, CPU)
    assert "--teacher teacher" in raised.value.hint
    assert "model.num_heads" not in raised.value.hint  # of `train`, it is the model that learns
