"""Statistics of labels and class lists, and the class list as a tree."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from vit21k.atomic import write_atomic
from vit21k.labels.edit import LabelLists, hypernyms, without_ancestors
from vit21k.manifest.class_lists import identify, known_list, map_ids
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import IMAGES
from vit21k.manifest.wordnet import Hierarchy, Ints
from vit21k.prep.dedup import prefetched

PERSON = "n00007846"
TEDDY = "n04399382"

LARGER_THAN = (0, 10, 100, 500, 1000)
"""Thresholds of class sizes; 500 is that of ImageNet-21K-P."""


def list_facts(classes: ClassList) -> dict[str, Any]:
    """Return statistics of the list, independent of the images.

    Raises:
        ManifestError: WordNet's table was not installed with vit21k, or is damaged.
    """
    hierarchy = Hierarchy.of(classes)
    num_ancestors = hierarchy.ancestors.num_K
    known = [wnid for wnid in classes.wnids if wnid in hierarchy.synsets]
    first_names = Counter(hierarchy.synsets.name(wnid).split(", ")[0].lower() for wnid in known)
    in_wordnet = [len(hierarchy.synsets.parents(wnid)) for wnid in known]
    is_leaf = hierarchy.is_leaf_K()
    return {
        "num_classes": len(classes),
        "is": next((match.name for match in identify(classes) if match.is_equal), None),
        "num_unknown_to_wordnet": hierarchy.num_unknown,
        "num_leaves": int(is_leaf.sum()),
        "num_inner": int((~is_leaf).sum()),
        "num_with_several_parents_in_wordnet": sum(number > 1 for number in in_wordnet),
        "num_with_several_parents_in_list": int((hierarchy.parents.num_K > 1).sum()),
        "num_with_ancestors_in_list": int((num_ancestors > 0).sum()),
        "mean_ancestors_in_list": round(float(num_ancestors.mean()), 2),
        "max_ancestors_in_list": int(num_ancestors.max()),
        "num_distinct_first_names": len(first_names),
        "num_people": int(hierarchy.subtree_K(PERSON).sum()),
        **_facts_of_in1k(hierarchy),
        "has_teddy": TEDDY in classes.wnids,
    }


def _facts_of_in1k(hierarchy: Hierarchy) -> dict[str, int]:
    """Return how many classes of ImageNet-1k the list has, and their hyponyms in it."""
    ids = map_ids(known_list("in1k"), hierarchy.classes)
    ids = ids[ids >= 0]
    ancestors = hierarchy.ancestors
    of_E = np.repeat(np.arange(len(hierarchy)), ancestors.num_K)
    is_below = np.isin(ancestors.above_E, ids)
    return {
        "num_of_in1k": len(ids),
        "num_of_in1k_with_others_below": int((~hierarchy.is_leaf_K()[ids]).sum()),
        "num_below_one_of_in1k": len(np.unique(of_E[is_below])),
    }


def label_stats(manifests: Path) -> dict[str, Any]:
    """Return statistics of the labels of `images.parquet`.

    Raises:
        ManifestError: `images.parquet` is missing, stale or damaged.
    """
    images = open_manifest(manifests, IMAGES)
    hierarchy = Hierarchy.of(images.classes())
    size = len(hierarchy)
    num_images_K = np.zeros(size, dtype=np.int64)
    by_num_labels: Counter[int] = Counter()
    num_above = num_redundant = 0
    for rows in prefetched(images.batches(["label_ids"])):
        lists = LabelLists.from_arrow(rows["label_ids"].combine_chunks())
        num_images_K += np.bincount(lists.label_L, minlength=size)
        counts = np.bincount(lists.num_N).tolist()
        by_num_labels.update({number: count for number, count in enumerate(counts) if count})
        num_above += len(hypernyms(lists, hierarchy.ancestors).label_L)
        reduced = without_ancestors(lists, hierarchy.ancestors)
        num_redundant += len(lists.label_L) - len(reduced.label_L)
    num_labels = int(num_images_K.sum())
    num_images = max(images.num_rows, 1)
    return {
        "num_images": images.num_rows,
        "num_labels": num_labels,
        "images_by_number_of_labels": dict(sorted(by_num_labels.items())),
        "mean_labels": round(num_labels / num_images, 3),
        "mean_labels_with_hypernyms": round((num_labels + num_above) / num_images, 3),
        "num_labels_above_another": num_redundant,
        "num_labels_of_people": int(num_images_K[hierarchy.subtree_K(PERSON)].sum()),
        "num_classes_with_more_images_than": {
            number: int((num_images_K > number).sum()) for number in LARGER_THAN
        },
        "images_per_class": {
            "min": int(num_images_K.min()),
            "median": float(np.median(num_images_K)),
            "max": int(num_images_K.max()),
        },
    }


FORMAT = 1


def class_tree(classes: ClassList) -> dict[str, Any]:
    """Return the tree of *classes*.

    Raises:
        ManifestError: WordNet's table was not installed with vit21k, or is damaged.
    """
    hierarchy = Hierarchy.of(classes)
    parent_K = hierarchy.primary_parent_K()
    lines = [_line(parent_K, index) for index in range(len(classes))]
    parents, ancestors = hierarchy.parents, hierarchy.ancestors
    return {
        "format": FORMAT,
        "fingerprint": classes.fingerprint,
        "num_classes": len(classes),
        "class_list": list(classes.wnids),
        "class_description": [
            hierarchy.synsets.name(wnid) if wnid in hierarchy.synsets else wnid
            for wnid in classes.wnids
        ],
        "class_tree_list": lines,
        "level": [len(line) - 1 for line in lines],
        "parents": [parents.of(index) for index in range(len(classes))],
        "ancestors": [ancestors.of(index) for index in range(len(classes))],
        "is_leaf": np.asarray(hierarchy.is_leaf_K()).tolist(),
    }


def write_class_tree(classes: ClassList, path: Path) -> dict[str, Any]:
    """Write the tree of *classes* to *path*; return it.

    Raises:
        OSError: The disk is full or failing.
    """
    tree = class_tree(classes)
    lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in tree.items())
    write_atomic(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
    return tree


def _line(parent_K: Ints, index: int) -> list[int]:
    line = [index]
    while (above := int(parent_K[line[-1]])) >= 0:
        line.append(above)
    return line
