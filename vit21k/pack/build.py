"""Manifests -> a pack: shards, and the manifests by which they are read."""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vit21k.errors import ManifestError, UsageError
from vit21k.hashing.places import refuse_inside
from vit21k.lock import locked
from vit21k.manifest.reader import open_manifest
from vit21k.manifest.schema import CLASSES, IMAGES, LEFT_OUT, PACKED, TRAIN, VAL
from vit21k.pack.index import INFO, OPTION, has_val, is_whole, write_index
from vit21k.pack.levels import Level
from vit21k.pack.parts import Parts, ShardFacts
from vit21k.pack.plan import Plan, shard_pattern
from vit21k.pack.restore import restore_parts
from vit21k.pack.shard_builder import ShardBuilder
from vit21k.pack.sources import Sources, open_pictures, open_sources

PER_SHARD = 5_000
"""550 MB of ImageNet's pictures."""

_FILES = (TRAIN, VAL, IMAGES, CLASSES, LEFT_OUT)


@dataclass
class PackSummary:
    """Counts of a run of `pack`.

    Attributes:
        num_pictures: Pictures of the manifests: the sum of the forms and of `num_left_out`.
        num_shards: Tars.
        num_shards_kept: Those of them that were finished by an earlier run.
        num_left_out: Pictures that are not there or cannot be decoded, in `left_out.parquet`.
        left_out: Of which kinds these are.
        forms: How many pictures became what: `tiles`, `as_is`, `resized`, `raw`.
        notes: Why pictures stayed as they are, and how many did.
        source_bytes: Size of the packed pictures' files.
        packed_bytes: Size of the pictures in the pack.
        total_bytes: Size of the shards, with the headers and labels in them.
        has_val: Whether there are pictures to validate on.
    """

    num_pictures: int = 0
    num_shards: int = 0
    num_shards_kept: int = 0
    num_left_out: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    forms: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    source_bytes: int = 0
    packed_bytes: int = 0
    total_bytes: int = 0
    has_val: bool = False


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How a pack is laid out.

    Attributes:
        name: What the shards' names begin with.
        per_shard: Pictures of a shard.
        seed: Of the order of the pictures; None: that of the manifests.
        num_workers: Threads that prepare pictures; they decide no byte.
        fresh: Remove the pack that is there first.
    """

    name: str = "imagenet21k"
    per_shard: int = PER_SHARD
    seed: int | None = 0
    num_workers: int = 1
    fresh: bool = False


def pack(
    manifests: Path,
    out: Path,
    level: Level,
    options: PackOptions,
    *,
    root: Path | None = None,
    on_start: Callable[[int], None] = lambda _num_pictures: None,
    on_picture: Callable[[int, bool], None] = lambda _num_bytes, _is_left_out: None,
    note: Callable[[str], None] = lambda _text: None,
) -> PackSummary:
    """Write a pack of what *manifests* hold into the folder *out*, or finish one.

    Args:
        manifests: The folder of the manifests.
        out: Where; new, or with a pack of the same plan that was not finished.
        level: What is done to a picture.
        options: How the pack is laid out.
        root: Where the images are now; default: where they were hashed.
        on_start: Called with how many pictures there are to do, if there are any.
        on_picture: Called with the size of each picture's file, and whether it is left out.
        note: Hears what is done first, if it takes long.

    Raises:
        ManifestError: A manifest is missing, stale or damaged.
        ImageTreeError: The images are not there.
        UsageError: *out* lies in the image root, or holds something else.
        LockedError: Another run works on *out*.
        OSError: The disk is full or failing; the same call goes on from there.
    """
    sources = open_sources(manifests)
    refuse_inside(out, str(root or sources.manifests[0].header.root), option="--out")
    plan = _plan_of(sources, level, options)
    _refuse_other_files(out, sources)
    with locked(out, command="pack"):
        parts = Parts(out)
        if options.fresh:
            _remove_pack(out, parts, plan)
        if is_whole(out, plan):
            parts.remove()
            return _summary(out, num_kept=None)
        _refuse_other_plan(out, parts, plan)
        if (out / PACKED.file_name).is_file():  # a finished pack that has lost shards
            restore_parts(out, plan, parts, open_pictures(sources, root, note))
        missing = [shard for shard in plan.shards() if not parts.finished(shard.file_name)]
        if missing:
            pictures = open_pictures(sources, root, note)
            parts.begin(plan.as_json())
            on_start(sum(len(shard.positions) for shard in missing))
            wnids, num_workers = sources.classes().wnids, options.num_workers
            builder = ShardBuilder(out, pictures, wnids, level=level, num_workers=num_workers)
            builder.build(missing, on_picture)
        shards = _facts_of_all(parts, plan)
        write_index(out, sources, plan, parts, shards)
        parts.remove()
        return _summary(out, num_kept=sum(map(len, shards.values())) - len(missing))


def _plan_of(sources: Sources, level: Level, options: PackOptions) -> Plan:
    return Plan(
        name=options.name,
        level=dict(level.options),
        per_shard=options.per_shard,
        seed=options.seed,
        num_pictures={split: each.num_rows for split, each in sources.by_split.items()},
        inputs=sources.fingerprints,
    )


def _facts_of_all(parts: Parts, plan: Plan) -> dict[str, list[ShardFacts]]:
    by_split: dict[str, list[ShardFacts]] = {split: [] for split in plan.num_pictures}
    for shard in plan.shards():
        facts = parts.facts(shard.file_name)
        if facts is None:
            raise OSError(f"`{shard.file_name}` was written, and is not there any more")
        by_split[shard.split].append(facts)
    return by_split


def _refuse_other_files(out: Path, sources: Sources) -> None:
    """Refuse a folder with something in it that is no pack."""
    if out.resolve() == sources.folder.resolve():
        raise UsageError(
            f"`{out}` holds the manifests that are to be packed", hint="name a new folder: `--out`"
        )
    if not out.is_dir() or (out / PACKED.file_name).is_file() or Parts(out).folder.is_dir():
        return
    if any(path.name != ".lock" for path in out.iterdir()):
        raise UsageError(f"`{out}` is not empty", hint="name a new folder with `--out DIR`")


def _refuse_other_plan(out: Path, parts: Parts, plan: Plan) -> None:
    before = parts.plan()
    if before is None and (out / PACKED.file_name).is_file():
        before = open_manifest(out, PACKED).header.options[OPTION]
    if before is not None and before != plan.as_json():
        wanted = plan.as_json()
        names = ", ".join(sorted(name for name in wanted if wanted[name] != before.get(name)))
        raise UsageError(
            f"`{out}` holds a pack that was made otherwise ({names})",
            hint="name another folder with `--out`, or remove that pack with `--fresh`",
        )


def _remove_pack(out: Path, parts: Parts, plan: Plan) -> None:
    """Remove what a pack wrote, and nothing else; its index last, by which the rest is known."""
    index = out / PACKED.file_name
    before: Any = parts.plan() or (plan.as_json() if index.is_file() else None)
    with suppress(ManifestError):  # a damaged one: the shards may be called otherwise
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
    """Count what the finished pack in *out* holds; *num_kept* None: all of it was there."""
    index = open_manifest(out, PACKED)
    shards = index.header.options["shards"]
    left_out = Counter[str]()
    for rows in open_manifest(out, LEFT_OUT).batches(["kind"]):
        left_out += _counted(rows["kind"])
    num_left_out = left_out.total()
    summary = PackSummary(
        num_pictures=index.num_rows + num_left_out,
        num_shards=len(shards),
        num_shards_kept=len(shards) if num_kept is None else num_kept,
        num_left_out=num_left_out,
        left_out=dict(left_out.most_common()),
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
