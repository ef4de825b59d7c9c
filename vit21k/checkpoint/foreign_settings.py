"""What other programs say of classes, beside their weights or by their custom."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from vit21k.errors import CheckpointError
from vit21k.manifest.class_lists import KNOWN_LISTS, known_list
from vit21k.manifest.classes import ClassList

# What publishers of models mean by a head of this size: no two lists have the same.
_CUSTOMARY = {known.num_classes: known for known in KNOWN_LISTS.values()}
# The lists called "ImageNet-21K"; Google, PLSC and timm train them with sigmoids.
_SIZES_OF_21K = (21_841, 21_842, 21_843)


class FoundClasses(NamedTuple):
    """What the outputs of foreign weights mean."""

    classes: ClassList
    guess: str | None = None
    """How that is known, if nothing says it: a sentence."""


def classes_of(config: Mapping[str, Any], num_classes: int) -> FoundClasses:
    """Return the class list that *config* tells; else the one that is always trained at this size.

    Where there is no such list, classes are called by their index.

    Raises:
        CheckpointError: *config* names another number of classes.
    """
    if num_classes == 0:
        return FoundClasses(ClassList(()))
    if wnids := config.get("label_names"):
        names = config.get("label_descriptions") or {}
        if not isinstance(names, Mapping):
            names = dict(zip(wnids, names, strict=False))
        found = ClassList(tuple(map(str, wnids)), tuple(names.get(wnid) for wnid in wnids))
    elif isinstance(labels := config.get("labels"), list):  # timm 0.4 to 0.6
        texts = tuple(map(str, labels))
        found = ClassList(_wnids_named(texts), texts)
    elif labels := config.get("id2label"):
        texts = tuple(str(labels[key]) for key in sorted(labels, key=int))
        found = ClassList(_wnids_named(texts), texts)
    else:
        return _customary(num_classes)
    if len(found) != num_classes:
        raise CheckpointError(f"{len(found)} class names for a head of {num_classes}")
    return FoundClasses(found)


def _customary(num_classes: int) -> FoundClasses:
    known = _CUSTOMARY.get(num_classes)
    if known is None:
        return FoundClasses(ClassList(_indices(num_classes)))
    unknown = f"nothing says what the {num_classes:,} outputs mean"
    if known.file is None:
        return FoundClasses(
            ClassList(_indices(num_classes)),
            f"{unknown}; perhaps the list `{known.name}`, which does not come with vit21k: classes "
            "are called by their index",
        )
    return FoundClasses(known_list(known.name), f"{unknown}; taken for the list `{known.name}`")


def _wnids_named(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the wnids of a known list whose classes have these names, else indices."""
    customary = _CUSTOMARY.get(len(texts))
    if customary is not None and customary.file is not None:
        known = known_list(customary.name)
        pairs = zip(texts, known.names, strict=True)
        if sum(_lemma(text) == _lemma(other or "") for text, other in pairs) > len(texts) // 2:
            return known.wnids
    return _indices(len(texts))


def _lemma(text: str) -> str:
    return text.partition(",")[0].strip().lower()


def _indices(num_classes: int) -> tuple[str, ...]:
    return tuple(map(str, range(num_classes)))


def loss_kind_of(config: Mapping[str, Any], num_classes: int) -> Literal["sigmoid", "softmax"]:
    """Return what turns logits into probabilities: told, or by the custom of ImageNet-21K."""
    told = config.get("problem_type")
    if told is not None:
        return "sigmoid" if told == "multi_label_classification" else "softmax"
    return "sigmoid" if num_classes in _SIZES_OF_21K else "softmax"
