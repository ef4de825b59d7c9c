"""The loss of a run: of the labels, and of a teacher's logits if the recipe names one.

Dimensions: B images, C colours, H W pixels, K classes, M patches of an image that are kept.

Source of the distillation loss: facebookresearch/deit, losses.py, `DistillationLoss` (Touvron et
al., arXiv:2012.12877).  In a model with a distillation head (PiT's distilled variants) that head
learns from the teacher and the other one from the labels, as there.  DeiT's script refuses a model
with one head; here the one head learns from both, as in Hinton et al. 2015 (arXiv:1503.02531).
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit21k.checkpoint.model_folder import ModelCard, digest_of_tensors
from vit21k.data.loader import Batch
from vit21k.data.mix import DeviceTransform
from vit21k.data.transforms import normalise
from vit21k.device import Precision, autocast
from vit21k.errors import UsageError
from vit21k.inference.evaluate import LossFunction
from vit21k.losses.hierarchical import Levels, semantic_softmax_loss
from vit21k.losses.sparse import LOSSES, chunked_multi_label_loss, multi_label_loss, wants_chunks
from vit21k.manifest.classes import ClassList
from vit21k.recipe.schema import DistillSection, LossSection, Recipe
from vit21k.training.builders import device_transform_of
from vit21k.training.reporter import Reporter


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The function that a run minimises.

    Attributes:
        recipe: Its loss, normalisation, and mixing on the device.
        device: Of the model.
        levels: Levels of the classes, for semantic softmax; else None.
        teacher: The model to learn from, if the recipe has one.
    """

    recipe: Recipe
    device: torch.device
    levels: Levels | None = None
    teacher: "Teacher | None" = None

    def loss(self, model: nn.Module, batch: Batch, kept_BM: Tensor | None = None) -> Tensor:
        """Compute the mean loss over the images of one micro-batch: forward pass and loss.

        Args:
            model: In train mode, on the device.
            batch: The images.
            kept_BM: Patches of each image that the model sees; None: all.
        """
        recipe = self.recipe
        pixels, rows, ids, weights = self._device_transform(batch, self.device)
        images = normalise(pixels, recipe.data.mean, recipe.data.std)
        inputs = (images,) if kept_BM is None else (images, kept_BM)
        if recipe.loss.mixed_labels == "whole":
            weights = None
        options = {"label_weights_L": weights, **loss_options(recipe.loss)}
        if recipe.loss.kind == "sigmoid" and wants_chunks(model, len(images)):
            chunked: Any = model  # has `features` and a linear `head`
            with autocast(self.device, recipe.products_in):
                features = chunked.features(*inputs)
                return chunked_multi_label_loss(features, chunked.head, rows, ids, **options)
        with autocast(self.device, recipe.products_in):
            logits = model(*inputs)
        if self.teacher is None:
            return self.label_loss(logits, rows, ids, **options)
        return distilled_loss(
            logits,
            self.teacher.logits_of(pixels, recipe.products_in),
            lambda logits_BK: self.label_loss(logits_BK, rows, ids, **options),
            recipe.distill,
        )

    @cached_property
    def label_loss(self) -> LossFunction:
        """The loss of the labels; its smoothing is an option of the call."""
        if self.levels is not None:
            return partial(semantic_softmax_loss, levels=self.levels)
        if self.recipe.loss.kind == "sigmoid":
            return partial(multi_label_loss, class_reduction=self.recipe.loss.class_reduction)
        return LOSSES[self.recipe.loss.kind]

    @cached_property
    def _device_transform(self) -> DeviceTransform:
        recipe = self.recipe
        sums_to_one = recipe.loss.kind != "sigmoid"
        return device_transform_of(
            recipe.augment, recipe.data, sums_to_one=sums_to_one, seed=recipe.seed
        )

    @property
    def fingerprints(self) -> Mapping[str, str | None]:
        """Fingerprints that a run must have in common with its resumption, by name."""
        return {
            "tree of classes": None if self.levels is None else self.levels.fingerprint,
            "teacher": None if self.teacher is None else self.teacher.fingerprint,
        }


def loss_options(section: LossSection) -> dict[str, Any]:
    """Return the options of the loss function besides logits and labels."""
    if section.kind != "sigmoid":
        return {"smoothing": section.smoothing}
    return {
        "smoothing": section.smoothing,
        "smoothing_floor": section.smoothing_floor or "e",
        "class_reduction": section.class_reduction,
    }


def build_objective(
    recipe: Recipe, classes: ClassList, device: torch.device, reporter: Reporter
) -> Objective:
    """Build the loss of *recipe*: read the tree of classes and load the teacher if needed.

    Raises:
        UsageError: The recipe needs a teacher and names none, or it has other classes.
        CheckpointError: The teacher is damaged or missing.
        ManifestError: The tree of classes is missing, damaged, or of another class list.
    """
    levels = None
    if recipe.loss.kind == "semantic_softmax":
        tree = recipe.loss.tree
        levels = Levels.of(classes) if tree is None else Levels.read(Path(tree), classes)
        if not levels.classes_HC:
            raise UsageError("loss.kind `semantic_softmax` needs classes, at least two of a level")
        levels = levels.to(device)
    teacher = _teacher_of(recipe.distill, classes, device, reporter)
    return Objective(recipe=recipe, device=device, levels=levels, teacher=teacher)


def _teacher_of(
    section: DistillSection, classes: ClassList, device: torch.device, reporter: Reporter
) -> "Teacher | None":
    if section.kind is None:
        return None
    if section.teacher is None:
        raise UsageError(
            f"the recipe learns from a teacher (distill.kind `{section.kind}`), and none was given",
            hint="name one with --teacher RUN, or do without: `--set distill.kind=null`",
        )
    teacher = open_teacher(section.teacher, classes, device)
    for warning in teacher.card.warnings:
        reporter.warn(
            f"the teacher: {warning}; `vit21k export --to safetensors` records what is right"
        )
    if teacher.card.classes.fingerprint != classes.fingerprint:
        reporter.warn(
            "the teacher's classes have other names than the images'; they are assumed to be in "
            "the same order"
        )
    return teacher


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained model to learn from.

    Attributes:
        model: In eval mode, without gradients.
        card: Its card.
        fingerprint: Of its weights; part of a run's state.
    """

    model: nn.Module
    card: ModelCard
    fingerprint: str

    @torch.no_grad()
    def logits_of(self, pixels_BCHW: Tensor, precision: Precision) -> Tensor:
        """Return its logits_BK for *pixels_BCHW*: 0 to 255, mixed or not, not normalised.

        They are normalised as in its training, and resized to its image size.
        """
        settings = self.card.eval_settings
        side = settings.img_size
        if pixels_BCHW.shape[-1] != side:
            pixels_BCHW = F.interpolate(
                pixels_BCHW.float(), size=(side, side), mode="bilinear", antialias=True
            )
        images_BCHW = normalise(pixels_BCHW, settings.mean, settings.std)
        with autocast(pixels_BCHW.device, precision):
            logits_BK: Tensor = self.model(images_BCHW)
        return logits_BK.float()


def open_teacher(path: str, classes: ClassList, device: torch.device) -> Teacher:
    """Load the model at *path*, as for `load_model`, as a teacher of *classes*.

    Raises:
        CheckpointError: There is no model, or it is damaged.
        UsageError: It has another number of classes, or does not state its architecture.
        OSError: An address cannot be read.
    """
    from vit21k.checkpoint.load import load_model  # noqa: PLC0415 (reads every format)

    try:
        model, card = load_model(path, device=str(device))
    except UsageError as error:  # `--set` of `train` would change the model that learns
        raise UsageError(
            f"the teacher `{path}`: {error.message}",
            hint=f"`vit21k export {shlex.quote(path)} --to safetensors --out teacher` says which "
            "`--set` settles it; then `--teacher teacher`",
        ) from error
    if len(card.classes) != len(classes):
        raise UsageError(
            f"the teacher `{path}` knows {len(card.classes):,} classes, the images have "
            f"{len(classes):,}",
            hint="fine-tune the teacher on the same class list first",
        )
    fingerprint = digest_of_tensors(model.state_dict())
    return Teacher(model=model.requires_grad_(False), card=card, fingerprint=fingerprint)


def distilled_loss(
    logits: Tensor,
    teacher_BK: Tensor,
    label_loss: Callable[[Tensor], Tensor],
    section: DistillSection,
) -> Tensor:
    """Return the weighted sum of the losses of labels and teacher.

    Args:
        logits: (B, K); or (2, B, K), of the head for the labels and of the head for the teacher.
        teacher_BK: The teacher's logits.
        label_loss: Logits_BK -> mean loss.
        section: Kind of the loss, weight of the teacher, temperature.
    """
    heads = logits.unbind() if logits.ndim == 3 else (logits, logits)  # noqa: PLR2004
    loss = distillation_loss(heads[1], teacher_BK, kind=section.kind or "hard", tau=section.tau)
    return (1 - section.alpha) * label_loss(heads[0]) + section.alpha * loss


def distillation_loss(
    logits_BK: Tensor, teacher_BK: Tensor, *, kind: Literal["hard", "soft"], tau: float = 1.0
) -> Tensor:
    """Return the difference of *logits_BK* from the teacher's, in float32.

    Args:
        logits_BK: Of the model that learns, or of its head for the teacher.
        teacher_BK: The teacher's logits.
        kind: "hard": cross-entropy with the teacher's best class, mean over images; "soft": the
            divergence of the two softmaxes times tau squared, mean over images *and classes*, as
            in DeiT (`/ outputs_kd.numel()`): a thousandth of the usual mean for 1,000 classes.
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
