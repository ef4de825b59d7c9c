"""A trained model as a teacher: what it says of the images, and what that adds to the loss.

Dimensions: B images, C colours, H W pixels, K classes.

Source: facebookresearch/deit, losses.py, `DistillationLoss` (Touvron et al., arXiv:2012.12877).
A model with a distillation head (PiT's distilled forms) answers the teacher with that head and the
labels with the other, as there.  Of a model with one head DeiT's script refuses to go on; here the
one head answers both, as in Hinton et al. 2015 (arXiv:1503.02531).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit21k.checkpoint.load import load_model
from vit21k.checkpoint.model_folder import ModelCard, digest_of_tensors
from vit21k.device import Precision, autocast
from vit21k.errors import UsageError
from vit21k.inference.evaluate import normalise
from vit21k.manifest.classes import ClassList

DistillKind = Literal["hard", "soft"]


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained model that is asked, and not changed.

    Attributes:
        model: In eval mode, without gradients.
        card: What is known of it.
        fingerprint: Of its weights; part of a run's state.
    """

    model: nn.Module
    card: ModelCard
    fingerprint: str

    @torch.no_grad()
    def logits_of(self, pixels_BCHW: Tensor, precision: Precision) -> Tensor:
        """Return its logits_BK of *pixels_BCHW*: 0 to 255, mixed or not, not normalised.

        They are normalised as it learnt them, and resized if it sees another size.
        """
        side = self.card.eval_settings.img_size
        if pixels_BCHW.shape[-1] != side:
            pixels_BCHW = F.interpolate(
                pixels_BCHW.float(), size=(side, side), mode="bilinear", antialias=True
            )
        settings = self.card.eval_settings
        images_BCHW = normalise(pixels_BCHW, settings.mean, settings.std)
        with autocast(pixels_BCHW.device, precision):
            logits_BK: Tensor = self.model(images_BCHW)
        return logits_BK.float()


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How much a teacher counts beside the labels.

    Attributes:
        teacher: The one that is asked.
        kind: See `distillation_loss`.
        alpha: Share of the teacher in the loss; the labels have the rest.
        tau: See `distillation_loss`.
        precision: Of the teacher's matrix products.
    """

    teacher: Teacher
    kind: DistillKind
    alpha: float
    tau: float
    precision: Precision

    def loss(
        self, answer: Tensor, pixels_BCHW: Tensor, loss_of_labels: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return the loss of labels and teacher together.

        Args:
            answer: The model's logits_BK; or (2, B, K), of its head for the labels and of its head
                for the teacher.
            pixels_BCHW: What the model saw, 0 to 255.
            loss_of_labels: Logits_BK -> mean loss.
        """
        heads = answer.unbind() if answer.ndim == 3 else (answer, answer)  # noqa: PLR2004
        of_labels = loss_of_labels(heads[0])
        teacher_BK = self.teacher.logits_of(pixels_BCHW, self.precision)
        of_teacher = distillation_loss(heads[1], teacher_BK, kind=self.kind, tau=self.tau)
        return (1 - self.alpha) * of_labels + self.alpha * of_teacher


def open_teacher(path: str, classes: ClassList, device: torch.device) -> Teacher:
    """Load the model at *path*, which `load_model` takes, as a teacher of *classes*.

    Raises:
        CheckpointError: There is no model, or it is damaged.
        UsageError: It is for another number of classes.
        OSError: An address cannot be read.
    """
    model, card = load_model(path, device=str(device))
    if len(card.classes) != len(classes):
        raise UsageError(
            f"the teacher `{path}` knows {len(card.classes):,} classes, the images have "
            f"{len(classes):,}",
            hint="fine-tune the teacher on the same class list first",
        )
    fingerprint = digest_of_tensors(model.state_dict())
    return Teacher(model=model.requires_grad_(False), card=card, fingerprint=fingerprint)


def distillation_loss(
    logits_BK: Tensor, teacher_BK: Tensor, *, kind: DistillKind, tau: float = 1.0
) -> Tensor:
    """Return how far *logits_BK* are from what the teacher says, in float32.

    Args:
        logits_BK: Of the model that learns, or of its head for the teacher.
        teacher_BK: The teacher's logits.
        kind: "hard": cross-entropy with the teacher's best class, mean over images; "soft": the
            divergence of the two softmaxes times tau squared, mean over images *and classes*, as
            DeiT has it (`/ outputs_kd.numel()`): a thousandth of the usual mean for 1,000 classes.
        tau: Temperature of "soft".
    """
    logits_BK, teacher_BK = logits_BK.float(), teacher_BK.float()
    if kind == "hard":
        return F.cross_entropy(logits_BK, teacher_BK.argmax(dim=1))
    divergence = F.kl_div(
        F.log_softmax(logits_BK / tau, dim=1),
        F.log_softmax(teacher_BK / tau, dim=1),
        reduction="sum",
        log_target=True,
    )
    return divergence * tau**2 / logits_BK.numel()
