"""Write a pack: shards, and the manifests that index them; resume or repair one."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vit21k.data.dataset import ImageDataset
from vit21k.errors import ManifestError, UsageError
from vit21k.lock import locked
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import CLASSES, IMAGES, PACKED, SKIPPED, TRAIN, VAL
from vit21k.manifest.writer import refuse_inside
from vit21k.pack.index import INFO, OPTION, has_val, is_complete, write_index
from vit21k.pack.levels import PackLevel
from vit21k.pack.plan import (
    PART_SCHEMA,
    CompletedShard,
    CompletedShards,
    PackPlan,
    Part,
    Sources,
    open_images,
    open_sources,
    part_rows,
    shard_pattern,
)
from vit21k.pack.shards import ShardBuilder
from vit21k.sources.read import Root

_FROM_INDEX = [name for name in PART_SCHEMA.names if name not in ("row", "problem", "detail")]


def restore_parts(
    folder: Path, plan: PackPlan, parts: CompletedShards, images: Mapping[str, ImageDataset]
) -> None:
    """Write the part of each intact shard of a complete pack in *folder*, from its index.

    Parts are removed when a pack is complete.  The index and the list of skipped images contain
    everything except the row indices, which follow from the plan.

    Raises:
        ManifestError: The index is damaged, or does not match the list of skipped images.
        OSError: The disk is full or failing.
    """
    index = open_manifest(folder, PACKED)
    facts = [CompletedShard(**each) for each in index.header.options["shards"]]
    has_skipped = (folder / SKIPPED.file_name).is_file()
    skipped = open_manifest(folder, SKIPPED).read().to_pylist() if has_skipped else []
    problems = {each["path"]: (each["kind"], each["detail"]) for each in skipped}
    rows_of_shards = _by_shard(index.batches(_FROM_INDEX), facts)
    for shard, (found, rows) in zip(plan.shards(), rows_of_shards, strict=True):
        tar = folder / found.file_name
        if tar.is_file() and tar.stat().st_size == found.num_bytes:
            named = [(row, images[shard.split].path(row)) for row in shard.rows.tolist()]
            parts.save(Part(found, part_rows(_in_order(named, rows.to_pylist(), problems))))


def _by_shard(
    batches: Iterator[pa.Table], facts: list[CompletedShard]
) -> Iterator[tuple[CompletedShard, pa.Table]]:
    """Yield each shard with its rows of the index, which are consecutive."""
    rows = pa.schema([PART_SCHEMA.field(name) for name in _FROM_INDEX]).empty_table()
    for shard in facts:
        while rows.num_rows < shard.num_images:
            rows = pa.concat_tables([rows, next(batches).select(_FROM_INDEX).cast(rows.schema)])
        yield shard, rows.slice(0, shard.num_images)
        rows = rows.slice(shard.num_images)


def _in_order(
    named: list[tuple[int, str]],
    packed: list[dict[str, Any]],
    problems: Mapping[str, tuple[str, str]],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each image of a shard: it is in the index, or was skipped."""
    of_path = {each["path"]: each for each in packed}
    for row, path in named:
        if path in of_path:
            yield {"row": row, **of_path[path]}
        elif path not in problems:
            raise ManifestError(
                f"`{path}` is neither in the index nor in the list of skipped images",
                hint="make the pack again with `--fresh`",
            )
        else:
            kind, detail = problems[path]
            yield {"row": row, "path": path, "problem": kind, "detail": detail}


PER_SHARD = 5_000
"""550 MB of ImageNet's images."""

_FILES = (TRAIN, VAL, IMAGES, CLASSES, SKIPPED)


@dataclass
class PackSummary:
    """Counts of a run of `pack`.

    Attributes:
        num_images: Images of the manifests: the sum of the forms and of `num_skipped`.
        num_shards: Tars.
        num_shards_kept: Tars that an earlier run completed.
        num_skipped: Images that could not be read or decoded, in `skipped.parquet`.
        skipped: Number of these by kind.
        forms: Number of images by form: `tiles`, `as_is`, `resized`, `raw`.
        notes: Number of unchanged images by reason.
        source_bytes: Size of the packed images' files.
        packed_bytes: Size of the images in the pack.
        total_bytes: Size of the shards, including headers and labels.
        has_val: Whether there is a val split.
    """

    num_images: int = 0
    num_shards: int = 0
    num_shards_kept: int = 0
    num_skipped: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    forms: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    source_bytes: int = 0
    packed_bytes: int = 0
    total_bytes: int = 0
    has_val: bool = False


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Options of a pack.

    Attributes:
        name: Prefix of the shard names.
        per_shard: Images per shard.
        seed: Seed of the order of images; None: the order of the manifests.
        num_workers: Threads that process images; the result does not depend on it.
        fresh: Remove an existing pack first.
    """

    name: str = "imagenet21k"
    per_shard: int = PER_SHARD
    seed: int | None = 0
    num_workers: int = 1
    fresh: bool = False


def pack(
    manifests: Path,
    out: Path,
    level: PackLevel,
    options: PackOptions,
    *,
    root: Root | None = None,
    on_start: Callable[[int], None] = lambda _num_images: None,
    on_image: Callable[[int, bool], None] = lambda _num_bytes, _is_skipped: None,
    note: Callable[[str], None] = lambda _text: None,
) -> PackSummary:
    """Write a pack of the images in *manifests* into the folder *out*, or complete one.

    Args:
        manifests: The folder of the manifests.
        out: A new folder, or that of an incomplete pack with the same plan.
        level: How images are re-encoded.
        options: Options of the pack.
        root: Current image root; default: as hashed.
        on_start: Called with the number of images to process, if there are any.
        on_image: Called with the size of each image's file, and whether it is skipped.
        note: Reports preparations that take long.

    Raises:
        ManifestError: A manifest is missing, stale or damaged.
        ImageTreeError: The image root does not exist.
        UsageError: *out* is inside the image root, or not empty.
        LockedError: Another run works on *out*.
        OSError: The disk is full or failing; the same call resumes.
    """
    sources = open_sources(manifests)
    refuse_inside(out, str(root or sources.manifests[0].header.image_folder), option="--out")
    plan = _plan_of(sources, level, options)
    _refuse_other_files(out, sources)
    with locked(out, command="pack"):
        parts = CompletedShards(out)
        if options.fresh:
            _remove_pack(out, parts, plan)
        if is_complete(out, plan):
            parts.remove()
            return _summary(out, num_kept=None)
        _refuse_other_plan(out, parts, plan)
        if (out / PACKED.file_name).is_file():  # a complete pack that has lost shards
            restore_parts(out, plan, parts, open_images(sources, root, note))
        missing = [shard for shard in plan.shards() if not parts.finished(shard.file_name)]
        if missing:
            images = open_images(sources, root, note)
            parts.begin(plan.as_json())
            on_start(sum(len(shard.positions) for shard in missing))
            wnids, num_workers = sources.classes().wnids, options.num_workers
            builder = ShardBuilder(out, images, wnids, level=level, num_workers=num_workers)
            builder.build(missing, on_image)
        shards = _facts_of_all(parts, plan)
        write_index(out, sources, plan, parts, shards)
        parts.remove()
        return _summary(out, num_kept=sum(map(len, shards.values())) - len(missing))


def _plan_of(sources: Sources, level: PackLevel, options: PackOptions) -> PackPlan:
    return PackPlan(
        name=options.name,
        level=dict(level.options),
        per_shard=options.per_shard,
        seed=options.seed,
        num_images={split: each.num_rows for split, each in sources.by_split.items()},
        inputs=sources.fingerprints,
    )


def _facts_of_all(parts: CompletedShards, plan: PackPlan) -> dict[str, list[CompletedShard]]:
    by_split: dict[str, list[CompletedShard]] = {split: [] for split in plan.num_images}
    for shard in plan.shards():
        facts = parts.facts(shard.file_name)
        if facts is None:
            raise OSError(f"`{shard.file_name}` was written, but no longer exists")
        by_split[shard.split].append(facts)
    return by_split


def _refuse_other_files(out: Path, sources: Sources) -> None:
    """Refuse a folder that is neither empty nor a pack."""
    if out.resolve() == sources.folder.resolve():
        raise UsageError(
            f"`{out}` is the folder of the manifests", hint="name a new folder: `--out DIR`"
        )
    if (
        not out.is_dir()
        or (out / PACKED.file_name).is_file()
        or CompletedShards(out).folder.is_dir()
    ):
        return
    if any(path.name != ".lock" for path in out.iterdir()):
        raise UsageError(f"`{out}` is not empty", hint="name a new folder with `--out DIR`")


def _refuse_other_plan(out: Path, parts: CompletedShards, plan: PackPlan) -> None:
    before = parts.plan()
    if before is None and (out / PACKED.file_name).is_file():
        before = open_manifest(out, PACKED).header.options[OPTION]
    if before is not None and before != plan.as_json():
        wanted = plan.as_json()
        names = ", ".join(sorted(name for name in wanted if wanted[name] != before.get(name)))
        raise UsageError(
            f"`{out}` has a pack with other options ({names})",
            hint="name another folder with `--out`, or remove that pack with `--fresh`",
        )


def _remove_pack(out: Path, parts: CompletedShards, plan: PackPlan) -> None:
    """Remove the files of a pack, its index last."""
    index = out / PACKED.file_name
    before: Any = parts.plan() or (plan.as_json() if index.is_file() else None)
    with suppress(ManifestError):  # damaged: the shards may have another name
        before = open_manifest(index, PACKED).header.options[OPTION]
    if before is None:
        return
    for kind in _FILES:
        (out / kind.file_name).unlink(missing_ok=True)
    (out / INFO).unlink(missing_ok=True)
    pattern = shard_pattern(before["name"])
    for path in sorted(out.iterdir()):
        if pattern.fullmatch(path.name):
            path.unlink()
    parts.remove()
    index.unlink(missing_ok=True)


def _summary(out: Path, *, num_kept: int | None) -> PackSummary:
    """Return the counts of the complete pack in *out*; *num_kept* None: all shards were kept."""
    index = open_manifest(out, PACKED)
    shards = index.header.options["shards"]
    skipped = Counter[str]()
    for rows in open_manifest(out, SKIPPED).batches(["kind"]):
        skipped += _counted(rows["kind"])
    num_skipped = skipped.total()
    summary = PackSummary(
        num_images=index.num_rows + num_skipped,
        num_shards=len(shards),
        num_shards_kept=len(shards) if num_kept is None else num_kept,
        num_skipped=num_skipped,
        skipped=dict(skipped.most_common()),
        total_bytes=sum(facts["num_bytes"] for facts in shards),
        has_val=has_val(out),
    )
    forms, notes = Counter[str](), Counter[str]()
    for rows in index.batches(["form", "note", "source_bytes", "num_bytes"]):
        forms += _counted(rows["form"])
        notes += _counted(rows["note"].drop_null())
        summary.source_bytes += pc.sum(rows["source_bytes"]).as_py() or 0
        summary.packed_bytes += pc.sum(rows["num_bytes"]).as_py() or 0
    summary.forms, summary.notes = dict(forms.most_common()), dict(notes.most_common())
    return summary


def _counted(values: pa.ChunkedArray) -> Counter[str]:
    return Counter({each["values"]: each["counts"] for each in pc.value_counts(values).to_pylist()})
