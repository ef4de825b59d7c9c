"""PLSC's ImageNet-21K lists in plain Python: what the commands are compared with.

Written from the description of the procedure (PLSC, task/classification/vit/README.md, "ImageNet21K
data preparation"), not from its code:

1. md5sum of every file, in whatever order.
2. Files with one md5 are one image: its path is the first one seen, its labels the sorted set of
   the class indices of its folders.  A class index is the rank of the folder among those seen.
   Images are ordered, stably, by their first label.  Line: ``path 3,17``.
3. Of the images with exactly one label, the first 20 of each class in that order.  Line:
   ``path 3``.
"""

from collections import Counter


def plsc_lists(md5sum: str, prefix: str = "", per_class: int = 20) -> tuple[str, str]:
    """Return both lists for the lines that md5sum printed; names without blanks or backslashes."""
    files = [(line[:32], line[34:].removeprefix(prefix)) for line in md5sum.splitlines()]
    folders = sorted({path.split("/")[-2] for _, path in files})
    index_of = {folder: index for index, folder in enumerate(folders)}

    first_path: dict[str, str] = {}
    labels_of: dict[str, set[int]] = {}
    for md5, path in files:
        first_path.setdefault(md5, path)
        labels_of.setdefault(md5, set()).add(index_of[path.split("/")[-2]])
    images = [(path, sorted(labels_of[md5])) for md5, path in first_path.items()]
    images.sort(key=lambda image: image[1][0])

    all_lines, val_lines = [], []
    num_taken: Counter[int] = Counter()
    for path, labels in images:
        all_lines.append(f"{path} {','.join(map(str, labels))}\n")
        if len(labels) == 1 and num_taken[labels[0]] < per_class:
            num_taken[labels[0]] += 1
            val_lines.append(f"{path} {labels[0]}\n")
    return "".join(all_lines), "".join(val_lines)
