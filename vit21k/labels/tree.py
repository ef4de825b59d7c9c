"""A class list -> its tree as JSON, for losses that know what is a kind of what.

MIIL's semantic softmax reads such a tree from a pickle that users could not get; the keys
`class_list` and `class_tree_list` here are that file's: for each class, its index and those of the
classes above it, one parent each, the nearest first.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from vit21k.atomic import write_atomic
from vit21k.manifest.classes import ClassList
from vit21k.manifest.hierarchy import Hierarchy, Ints

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


def write_tree(classes: ClassList, path: Path) -> dict[str, Any]:
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
