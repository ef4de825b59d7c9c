"""Manifests -> the labels as cleanlab takes them: a list of class indices for each picture.

`cleanlab.multilabel_classification.filter.find_label_issues(labels=..., pred_probs=...)` wants a
`list[list[int]]`; row i of *pred_probs* must be the picture on line i of the paths.
"""

import json
from pathlib import Path

from vit21k.atomic import atomic_file
from vit21k.dataset_export.splits import Splits

_COLUMNS = {"labels": "label_ids", "paths": "path"}


def write_cleanlab(splits: Splits, out: Path) -> list[Path]:
    """Write `{split}_labels.json` and `{split}_paths.json`; return them.

    Raises:
        OSError: The disk is full or failing.
    """
    written = []
    for name, manifest in splits.by_name.items():
        for what, column in _COLUMNS.items():
            path = out / f"{name}_{what}.json"
            with atomic_file(path) as file:
                separator = b"["
                for rows in manifest.batches([column]):
                    text = json.dumps(rows[column].to_pylist(), ensure_ascii=False)[1:-1]
                    if text:
                        file.write(separator + text.encode())
                        separator = b",\n"
                file.write(b"[]\n" if separator == b"[" else b"]\n")
            written.append(path)
    return written
