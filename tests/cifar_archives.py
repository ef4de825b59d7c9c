"""Small archives in the format of CIFAR's, as Python 2 pickled them."""

import io
import pickle
import tarfile

import numpy as np

NAMES = ["airplane", "automobile", "bird"]


def pixels(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def cifar10_files(per_batch=3):
    """Return the content of the files of a small CIFAR-10, by name."""
    files = {"batches.meta": pickle.dumps({"label_names": NAMES}, protocol=2)}
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for seed, name in enumerate(names):
        labels = [(seed + index) % 3 for index in range(per_batch)]
        batch = {"data": pixels(seed, per_batch), "labels": labels, "batch_label": name}
        files[name] = pickle.dumps(batch, protocol=2)
    return files


def cifar100_files(count=4):
    files = {"meta": pickle.dumps({"fine_label_names": NAMES}, protocol=2)}
    for seed, name in enumerate(("train", "test")):
        batch = {"data": pixels(seed, count), "fine_labels": [i % 3 for i in range(count)]}
        files[name] = pickle.dumps(batch, protocol=2)
    return files


def write_archive(path, files, folder="cifar-10-batches-py"):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path
