"""Make every published form of a dataset from one folder of images, and compare what is read of each.

    python tools/check/check_sources.py IMAGES                  # all forms: images, labels, digests
    python tools/check/check_sources.py IMAGES --forms zip,wds  # forms whose names contain these words
    python tools/check/check_sources.py IMAGES --pipeline       # also every later command, slow

IMAGES is <class>/<file>.  Copies with other names are added, within a class and in other classes, so
that the number of files and the labels of each image are known.  Of each form, `hash` and `relabel`
have to give the same digests, labels and number of files, and `images.parquet` may differ in its
locators only.  timm, webdataset and datasets read the same shards for comparison.

Exit status: 1 if anything differs.
"""

import argparse
import csv
import gzip
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
import xxhash
from timm.data.dataset_factory import create_dataset

from vit21k.errors import Vit21kError
from vit21k.manifest.io import read_manifest
from vit21k.manifest.schema import CLASSES, DIGESTS, IMAGES, LOCATOR_COLUMNS, PROBLEMS, TRAIN, VAL
from vit21k.sources.container import PARQUET
from vit21k.sources.read import ImageReader

NUM_COPIES = 60
NUM_SHARDS = 4


class File(NamedTuple):
    """An image file: its class, its name, its bytes."""

    wnid: str
    name: str
    content: bytes


class Form(NamedTuple):
    """A form of the dataset.

    Attributes:
        write: Makes it in a new folder.
        options: Of `hash`.
        root: What to hash, relative to the folder.
        needs: An optional package; without it the form is skipped.
    """

    write: Callable[[Sequence[File], Path], None]
    options: tuple[str, ...] = ()
    root: str = ""
    needs: str | None = None


def read_files(root: Path, *, num_copies: int = NUM_COPIES, seed: int = 0) -> list[File]:
    """Return the images below *root* and planted copies."""
    files = [
        File(path.parent.name, path.name, path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix.lower() in {".jpeg", ".jpg", ".png"}
    ]
    wnids = sorted({file.wnid for file in files})
    rng = random.Random(seed)
    for number in range(num_copies):
        file = rng.choice(files)
        wnid = file.wnid if number % 4 == 0 else rng.choice(wnids)
        files.append(File(wnid, f"{wnid}_copy{number}.JPEG", file.content))
    return sorted(files, key=lambda file: (file.wnid, file.name))


def shuffled(files: Sequence[File]) -> list[list[File]]:
    """Return the files of each shard, in another order than that of their names."""
    files = random.Random(1).sample(files, len(files))
    return [files[number::NUM_SHARDS] for number in range(NUM_SHARDS)]


def tar_of(
    members: Iterable[tuple[str, bytes]], path: Path, mode: Literal["w", "w:gz"] = "w"
) -> None:
    """Write a tar."""
    with tarfile.open(path, mode, format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def by_class(files: Sequence[File]) -> dict[str, list[File]]:
    """Return the files of each class."""
    found: dict[str, list[File]] = {}
    for file in files:
        found.setdefault(file.wnid, []).append(file)
    return found


def write_folders(files: Sequence[File], out: Path) -> None:
    """Class folders."""
    for file in files:
        path = out / file.wnid / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)


def write_class_tars(files: Sequence[File], out: Path) -> None:
    """winter21_whole: <wnid>.tar."""
    for wnid, members in by_class(files).items():
        tar_of(((file.name, file.content) for file in members), out / f"{wnid}.tar")


def write_tar_of_tars(files: Sequence[File], out: Path) -> None:
    """fall11_whole.tar: a tar of class tars."""
    with tempfile.TemporaryDirectory() as folder:
        write_class_tars(files, Path(folder))
        tars = sorted(Path(folder).iterdir())
        tar_of(((path.name, path.read_bytes()) for path in tars), out / "fall11_whole.tar")


def write_gzip_tar(files: Sequence[File], out: Path) -> None:
    """winter21_whole.tar.gz."""
    with tempfile.TemporaryDirectory() as folder:
        write_tar_of_tars(files, Path(folder))
        content = (Path(folder) / "fall11_whole.tar").read_bytes()
    (out / "whole.tar.gz").write_bytes(gzip.compress(content, 1))


def write_parts(files: Sequence[File], out: Path) -> None:
    """Parts of a compressed tar, as `split` makes them."""
    with tempfile.TemporaryDirectory() as folder:
        write_gzip_tar(files, Path(folder))
        content = (Path(folder) / "whole.tar.gz").read_bytes()
    size = -(-len(content) // 3)
    for number, suffix in enumerate(("aa", "ab", "ac")):
        part = content[number * size : (number + 1) * size]
        (out / f"whole.tar.gz.{suffix}").write_bytes(part)


def write_tree_tar(files: Sequence[File], out: Path) -> None:
    """A tree in a tar."""
    tar_of(((f"{file.wnid}/{file.name}", file.content) for file in files), out / "images.tar")


def _sink(out: Path, pattern: str) -> Any:
    return webdataset.ShardWriter(str(out / pattern), maxcount=10**9, verbose=0)


def _write_shards(
    files: Sequence[File],
    out: Path,
    fields: Callable[[File, int], dict[str, Any]],
    *,
    key: Callable[[File, int], str] = lambda _file, number: f"{number:08}",
    pattern: str = "imagenet22k-train-%04d.tar",
) -> list[int]:
    """Write shards by webdataset's own writer; return how many samples each has."""
    number = 0
    shards = shuffled(files)
    sink = _sink(out, pattern)
    for index, shard in enumerate(shards):
        if index:
            sink.next_stream()
        for file in shard:
            sink.write({"__key__": key(file, number), "jpg": file.content, **fields(file, number)})
            number += 1
    sink.close()
    return [len(shard) for shard in shards]


def _indices(files: Sequence[File]) -> dict[str, int]:
    return {wnid: index for index, wnid in enumerate(sorted({file.wnid for file in files}))}


def _timm_fields(files: Sequence[File]) -> Callable[[File, int], dict[str, Any]]:
    index_of = _indices(files)
    return lambda file, _number: {
        "cls": str(index_of[file.wnid]).encode(),
        "json": {
            "filename": f"{file.wnid}/{file.name}",
            "label": index_of[file.wnid],
            "class_name": file.wnid,
        },
    }


def write_timm(files: Sequence[File], out: Path) -> None:
    """timm/imagenet-22k-wds: .jpg, .cls, .json with class_name; _info.json."""
    counts = _write_shards(files, out, _timm_fields(files))
    names = [path.name for path in sorted(out.glob("*.tar"))]
    train = {
        "name": "train",
        "num_samples": sum(counts),
        "filenames": names,
        "shard_lengths": counts,
    }
    fewer = {
        **train,
        "name": "train_12k",
        "alt_label": "label_12k",
        "shard_lengths": [0] * len(names),
    }
    info = {"name": "imagenet22k", "version": "1", "splits": {"train": train, "train_12k": fewer}}
    (out / "_info.json").write_text(json.dumps(info))


def write_timm_1k(files: Sequence[File], out: Path) -> None:
    """timm/imagenet-1k-wds: the class is in the key, and in the path in .json."""
    index_of = _indices(files)
    _write_shards(
        files,
        out,
        lambda file, _number: {
            "cls": str(index_of[file.wnid]).encode(),
            "json": {"filename": f"{file.wnid}/{file.name}", "label": index_of[file.wnid]},
        },
        key=lambda file, number: f"{file.wnid}_{number}",
    )


def write_cls(files: Sequence[File], out: Path) -> None:
    """Only class indices; the list is in another file."""
    index_of = _indices(files)
    _write_shards(files, out, lambda file, _: {"cls": str(index_of[file.wnid]).encode()})
    (out / "classes.txt").write_text("\n".join(index_of) + "\n")


def write_cls_info(files: Sequence[File], out: Path) -> None:
    """Class indices, and their names in _info.json."""
    write_cls(files, out)
    (out / "classes.txt").unlink()
    (out / "_info.json").write_text(json.dumps({"class_names": list(_indices(files))}))


def write_cls_text(files: Sequence[File], out: Path) -> None:
    """Class names in .cls."""
    _write_shards(files, out, lambda file, _: {"cls": file.wnid.encode()})


def write_keys(files: Sequence[File], out: Path) -> None:
    """Images alone; the key begins with the class."""
    _write_shards(
        files, out, lambda _file, _number: {}, key=lambda file, number: f"{file.wnid}_{number}"
    )


def write_img2dataset(files: Sequence[File], out: Path) -> None:
    """img2dataset: columns of its input in .json, captions in .txt."""

    def fields(file: File, number: int) -> dict[str, Any]:
        record = {"url": f"http://x/{number}", "key": f"{number:09}", "status": "success"}
        return {"json": record | {"label": file.wnid}, "txt": "a caption"}

    key = lambda _file, number: f"{number:09}"  # noqa: E731
    _write_shards(files, out, fields, key=key, pattern="%05d.tar")


def write_zip(files: Sequence[File], out: Path, method: int = zipfile.ZIP_STORED) -> None:
    """One zip of class folders."""
    with zipfile.ZipFile(out / "images.zip", "w", method) as archive:
        for file in files:
            archive.writestr(f"{file.wnid}/{file.name}", file.content)


def write_deflated_zip(files: Sequence[File], out: Path) -> None:
    """One zip, compressed."""
    write_zip(files, out, zipfile.ZIP_DEFLATED)


def write_class_zips(files: Sequence[File], out: Path) -> None:
    """Swin's ImageNet-Zip, TinyViT: <wnid>.zip."""
    for wnid, members in by_class(files).items():
        with zipfile.ZipFile(out / f"{wnid}.zip", "w") as archive:
            for file in members:
                archive.writestr(file.name, file.content)


def _hugging_face(files: Sequence[File], *, names: bool) -> Any:
    index_of = _indices(files)
    label = datasets.ClassLabel(names=list(index_of)) if names else datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    shards = [file for shard in shuffled(files) for file in shard]
    columns = {
        "image": [{"bytes": file.content, "path": file.name} for file in shards],
        "label": [index_of[file.wnid] if names else file.wnid for file in shards],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def write_parquet(files: Sequence[File], out: Path, *, names: bool = True) -> None:
    """A dataset of the hub: data/train-00000-of-00004.parquet, labels as ClassLabel."""
    dataset = _hugging_face(files, names=names)
    (out / "data").mkdir()
    for number in range(NUM_SHARDS):
        path = out / "data" / f"train-{number:05}-of-{NUM_SHARDS:05}.parquet"
        dataset.shard(NUM_SHARDS, number).to_parquet(path)


def write_text_parquet(files: Sequence[File], out: Path) -> None:
    """The same with labels as text."""
    write_parquet(files, out, names=False)


def write_converted_parquet(files: Sequence[File], out: Path) -> None:
    """refs/convert/parquet of the hub: default/train/0000.parquet."""
    (out / "default" / "train").mkdir(parents=True)
    _hugging_face(files, names=True).to_parquet(out / "default" / "train" / "0000.parquet")


def write_compressed_parquet(files: Sequence[File], out: Path) -> None:
    """The same, with compressed columns: images are located by row."""
    table = _hugging_face(files, names=True).with_format("arrow")[:]
    pq.write_table(table, out / "train.parquet", compression="zstd", row_group_size=200)


def write_arrow(files: Sequence[File], out: Path) -> None:
    """A dataset written by `save_to_disk`."""
    _hugging_face(files, names=True).save_to_disk(out / "dataset", num_shards=2)


def _write_flat(files: Sequence[File], out: Path) -> Iterator[tuple[str, str]]:
    (out / "images").mkdir()
    for number, file in enumerate(files):
        name = f"{number:08}{Path(file.name).suffix}"
        (out / "images" / name).write_bytes(file.content)
        yield name, file.wnid


def write_flat(files: Sequence[File], out: Path) -> None:
    """One folder, and a CSV of names and labels."""
    with (out / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *_write_flat(files, out)])


def write_metadata(files: Sequence[File], out: Path) -> None:
    """Hugging Face's imagefolder: metadata.csv next to the images."""
    rows = list(_write_flat(files, out))
    with (out / "images" / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label"), *rows])


FORMS: dict[str, Form] = {
    "folders": Form(write_folders),
    "class tars": Form(write_class_tars),
    "tar of tars": Form(write_tar_of_tars, root="fall11_whole.tar"),
    "tar of tars in a folder": Form(write_tar_of_tars),
    "tar.gz": Form(write_gzip_tar, root="whole.tar.gz", needs="rapidgzip"),
    "tar.gz in parts": Form(write_parts, needs="rapidgzip"),
    "tree in a tar": Form(write_tree_tar, root="images.tar"),
    "wds timm": Form(write_timm),
    "wds timm 1k": Form(write_timm_1k),
    "wds .cls with --classes": Form(write_cls, ("--classes", "{}/classes.txt")),
    "wds .cls with _info.json": Form(write_cls_info),
    "wds text in .cls": Form(write_cls_text),
    "wds keys": Form(write_keys),
    "wds img2dataset": Form(write_img2dataset),
    "zip": Form(write_zip, root="images.zip"),
    "zip deflated": Form(write_deflated_zip, root="images.zip"),
    "zip per class": Form(write_class_zips),
    "parquet": Form(write_parquet),
    "parquet with text labels": Form(write_text_parquet),
    "parquet converted by the hub": Form(write_converted_parquet),
    "parquet with compressed columns": Form(write_compressed_parquet),
    "arrow": Form(write_arrow),
    "flat with labels.csv": Form(write_flat, ("--labels", "{}/labels.csv")),
    "flat with metadata.csv": Form(write_metadata, ("--labels", "{}/images/metadata.csv")),
}


def vit21k(
    *arguments: str, manifests: Path, expected: Sequence[int] = (0,)
) -> subprocess.CompletedProcess[str]:
    """Run a command."""
    environment = {**os.environ, "VIT21K_MANIFESTS": str(manifests)}
    command = [sys.executable, "-m", "vit21k", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in expected:
        raise Difference(f"vit21k {' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")
    return done


class Difference(Exception):  # noqa: N818
    """What a form gives is not what went into it."""


class Truth(NamedTuple):
    """What is to be read: labels and number of files of each image, by digest."""

    labels: dict[bytes, frozenset[str]]
    num_files: dict[bytes, int]


def truth_of(files: Sequence[File]) -> Truth:
    """Return what is to be read of *files*."""
    labels: dict[bytes, set[str]] = {}
    num_files: Counter[bytes] = Counter()
    for file in files:
        digest = xxhash.xxh3_128_digest(file.content)
        labels.setdefault(digest, set()).add(file.wnid)
        num_files[digest] += 1
    return Truth({digest: frozenset(found) for digest, found in labels.items()}, dict(num_files))


def compare(manifests: Path, root: Path, truth: Truth, reference: pa.Table) -> None:
    """Compare the manifests of a form with the truth.

    Raises:
        Difference: They differ.
    """
    rows = read_manifest(manifests, DIGESTS, ["digest", "wnid"])
    pairs = Counter(zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True))
    labels: dict[bytes, set[str]] = {}
    for digest, wnid in pairs:
        labels.setdefault(digest, set()).add(wnid)
    if {digest: frozenset(found) for digest, found in labels.items()} != truth.labels:
        raise Difference("labels differ")
    images = read_manifest(manifests, IMAGES)
    found = dict(zip(images["digest"].to_pylist(), images["num_files"].to_pylist(), strict=True))
    if found != truth.num_files:
        raise Difference("the number of files of an image differs")
    skipped = {"path", "num_files", "source_split", *LOCATOR_COLUMNS}
    kept = [name for name in images.column_names if name not in skipped]
    if not images.select(kept).sort_by("digest").equals(reference.select(kept).sort_by("digest")):
        raise Difference("images.parquet differs in more than locators")
    reader = ImageReader(root)
    for row in images.select(["digest", *LOCATOR_COLUMNS]).to_pylist():
        digest = row.pop("digest")
        if xxhash.xxh3_128_digest(reader.read(**row)) != digest:
            raise Difference(f"`{row['path']}` is read as other bytes")


def check_form(form: Form, files: Sequence[File], truth: Truth, work: Path) -> str:
    """Make a form, hash it and compare; return the line that says how it was read."""
    out, manifests = work / "form", work / "m"
    for folder in (out, manifests):
        shutil.rmtree(folder, ignore_errors=True)
    out.mkdir(parents=True)
    form.write(files, out)
    root = out / form.root
    options = [option.format(out) for option in form.options]
    done = vit21k("hash", str(root), *options, manifests=manifests)
    vit21k("relabel", manifests=manifests)
    header_root = root.parent if root.is_file() else root
    reference = read_manifest(work / "reference", IMAGES)
    compare(manifests, header_root, truth, reference)
    kinds = Counter(read_manifest(manifests, PROBLEMS, ["kind"])["kind"].to_pylist())
    line = next((line for line in done.stderr.splitlines() if line.startswith("layout")), "")
    return f"{line}{f'; {dict(kinds)}' if kinds else ''}"


TINY = (
    "--recipe tiny --set total_steps=4 --set schedule.warmup_steps=1 --set data.global_batch_size=8"
)
TINY += " --set data.device_batch_size=8 --num-workers 1"


def run_pipeline(work: Path) -> None:
    """Run every command after `relabel` on the manifests of the last form.

    Raises:
        Difference: One fails.
    """
    manifests, folder = work / "m", work / "pipeline"
    shutil.rmtree(folder, ignore_errors=True)
    run = str(folder / "run")
    commands = [
        ["make-val", "--per-class", "1", "--holdout"],
        ["verify"],
        ["verify", "--decode"],
        ["report", "--out", str(folder / "report.html")],
        ["leaks", "--against", str(work / "other")],
        ["labels", "near-duplicates"],
    ]
    trained = ["train", *TINY.split(), "--run-dir", run]
    for command in commands:
        vit21k(*command, manifests=manifests)
    storages = read_manifest(manifests, IMAGES, ["storage"])["storage"].unique().to_pylist()
    is_slow = any(storage and storage.startswith(PARQUET) for storage in storages)
    if is_slow:
        refused = vit21k(*trained, manifests=manifests, expected=(1, 2, 3))
        if "vit21k pack" not in refused.stderr:
            raise Difference(f"`train` does not say that `pack` comes first: {refused.stderr}")
    pack = folder / "pack"
    vit21k("pack", "--lossless", "--out", str(pack), manifests=manifests)
    vit21k("verify", "--decode", manifests=pack)
    vit21k(*trained, manifests=pack if is_slow else manifests)
    vit21k("eval", run, manifests=pack if is_slow else manifests)
    vit21k("predict", run, "--manifest", str(manifests / "val.parquet"), manifests=manifests)


def check_readers(files: Sequence[File], work: Path) -> None:
    """Read the shards of timm's form by timm, webdataset and datasets; compare labels and bytes."""
    out = work / "readers"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    write_timm(files, out)
    index_of = _indices(files)
    expected = Counter((file.content, index_of[file.wnid]) for file in files)
    urls = sorted(map(str, out.glob("*.tar")))
    ours = _read_by_vit21k(out, work, index_of)
    web = webdataset.WebDataset(urls, shardshuffle=False)
    theirs = {
        "vit21k": ours,
        "webdataset": Counter((one["jpg"], int(one["cls"])) for one in web),
        "datasets": Counter(
            (one["jpg"]["bytes"], one["cls"])
            for one in datasets.load_dataset(
                "webdataset", data_files={"train": urls}, split="train", streaming=True
            ).cast_column("jpg", datasets.Image(decode=False))
        ),
    }
    for name, found in theirs.items():
        if found != expected:
            raise Difference(f"{name} reads other images or labels of the same shards")
    timm = create_dataset("wds/x", root=str(out), split="train", num_samples=len(files))
    labels = Counter(target for _, target in timm)
    if labels != Counter(index_of[file.wnid] for file in files):
        raise Difference("timm reads other labels of the same shards")


def _read_by_vit21k(out: Path, work: Path, index_of: dict[str, int]) -> Counter[tuple[bytes, int]]:
    manifests = work / "m"
    shutil.rmtree(manifests, ignore_errors=True)
    vit21k("hash", str(out), manifests=manifests, expected=(0,))
    reader = ImageReader(out)
    rows = read_manifest(manifests, DIGESTS, ["wnid", *LOCATOR_COLUMNS]).to_pylist()
    labels = [index_of[row.pop("wnid")] for row in rows]
    return Counter((reader.read(**row), label) for row, label in zip(rows, labels, strict=True))


def check_pack(work: Path) -> None:
    """Hash a pack of vit21k, which is a WebDataset, and compare labels and bytes with its index."""
    manifests, pack, ours = work / "reference", work / "pack", work / "m"
    shutil.rmtree(ours, ignore_errors=True)
    vit21k("make-val", "--per-class", "1", "--holdout", manifests=manifests)
    vit21k("pack", "--lossless", "--out", str(pack), "--per-shard", "100", manifests=manifests)
    vit21k("hash", str(pack), manifests=ours)
    names = read_manifest(manifests, CLASSES, ["wnid"])["wnid"].to_pylist()
    columns = ["container", "offset", "num_bytes", "label_ids"]
    expected = Counter(
        (row["container"], row["offset"], row["num_bytes"], names[label])
        for kind in (TRAIN, VAL)
        for row in read_manifest(pack, kind, columns).to_pylist()
        for label in row["label_ids"]
    )
    rows = read_manifest(ours, DIGESTS, [*columns[:3], "wnid"])
    found = Counter(zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True))
    if found != expected:
        raise Difference("the images or labels of a pack differ from its index")


def main() -> int:
    """Check the forms, and print what was compared."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--forms", default="", help="words in the names of forms, comma-separated")
    parser.add_argument("--pipeline", action="store_true", help="run every later command, too")
    args = parser.parse_args()
    words = [word for word in args.forms.split(",") if word]
    datasets.disable_progress_bars()
    files = read_files(args.images)
    truth = truth_of(files)
    num_multi = sum(len(labels) > 1 for labels in truth.labels.values())
    print(
        f"{len(files):,} files, {len(truth.labels):,} images, {num_multi:,} with several labels, "
        f"{len(_indices(files)):,} classes"
    )
    with tempfile.TemporaryDirectory(prefix="check-sources-") as name:
        work = Path(name)
        write_folders(files, work / "tree")
        vit21k("hash", str(work / "tree"), manifests=work / "reference")
        vit21k("relabel", manifests=work / "reference")
        write_folders(files[::25], work / "other")
        failed = 0
        if not words:
            failed += _try("timm, webdataset, datasets", lambda: check_readers(files, work))
        if not words or "pack" in words:
            failed += _try("pack", lambda: check_pack(work))
        for form_name, form in FORMS.items():
            if not words or any(word in form_name for word in words):
                failed += _check(form_name, form, files, truth, work, pipeline=args.pipeline)
    return 1 if failed else 0


def _check(
    name: str, form: Form, files: Sequence[File], truth: Truth, work: Path, *, pipeline: bool
) -> bool:
    def check() -> str:
        if form.needs and find_spec(form.needs) is None:
            return f"skipped: {form.needs} is not installed"
        line = check_form(form, files, truth, work)
        if pipeline:
            run_pipeline(work)
        return line

    return _try(name, check)


def _try(name: str, check: Callable[[], str | None]) -> bool:
    """Run *check*, print how it went, and return whether it failed."""
    start = time.perf_counter()
    try:
        line, sign = check() or "", "ok"
    except (Difference, Vit21kError) as error:
        line, sign = str(error), "FAILED"
    print(f"{sign:6} {name:28} {time.perf_counter() - start:6.1f} s  {line}", flush=True)
    return sign != "ok"


if __name__ == "__main__":
    sys.exit(main())
