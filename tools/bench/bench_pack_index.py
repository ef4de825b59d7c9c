"""Planning, resuming and indexing a pack as large as ImageNet-21K: how long, and in what memory.

Made up: a train manifest, a dummy val of every 32nd image, and what a finished shard leaves
behind: its part, and a tar, which is a hole of the right size since nobody reads it here.  *Resume*
is a run that finds all shards finished but the last one, until it has asked for its first image;
*index* is one that finds all of them, and writes the manifests.  Each runs in a process of its own.
Memory is the most that it had at a time: of its own (`RssAnon`, looked at every 20 ms), and with
what is mapped from files, which the system may drop (`VmHWM`).

    python tools/bench/bench_pack_index.py [--rows N] [--work DIR] [--json]
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import bench_rows
import numpy as np
import pyarrow as pa

from vit21k.errors import ImageTreeError
from vit21k.manifest.io import ManifestHeader, open_manifest
from vit21k.manifest.schema import DIGEST_BYTES, TRAIN, VAL
from vit21k.manifest.writer import manifest_writer
from vit21k.pack.build import PER_SHARD, PackOptions, pack
from vit21k.pack.levels import Raw
from vit21k.pack.plan import (
    PART_SCHEMA,
    CompletedShard,
    CompletedShards,
    PackPlan,
    PackShard,
    Part,
    open_sources,
)

LEVEL = Raw(256)
_VAL_EACH = 32
_SAMPLE_BYTES = 112_128  # of an image in its shard, with headers and labels
_POLL_SECONDS = 0.02
_MIB = 1 << 20


def make_manifests(folder: Path, num_rows: int) -> None:
    """Write train.parquet and val.parquet."""
    bench_rows.make(folder, num_rows)
    train = open_manifest(folder, TRAIN)
    header = ManifestHeader(
        algorithm="xxh3_128",
        root=str(folder),
        classes="made up",
        options={"split": "dummy"},
    )
    start = 0
    with manifest_writer(VAL, folder, header, train.classes()) as writer:
        for rows in train.batches():
            first = -start % _VAL_EACH
            writer.write(rows.take(np.arange(first, rows.num_rows, _VAL_EACH)))
            start += rows.num_rows


def make_parts(folder: Path, out: Path) -> None:
    """Leave what a run of `pack` leaves that was killed behind its last shard."""
    sources = open_sources(folder)
    plan = PackPlan(
        name="imagenet21k",
        level=dict(LEVEL.options),
        per_shard=PER_SHARD,
        seed=0,
        num_images={split: each.num_rows for split, each in sources.by_split.items()},
        inputs=sources.fingerprints,
    )
    parts = CompletedShards(out)
    parts.begin(plan.as_json())
    paths = {split: each.read(["path"])["path"] for split, each in sources.by_split.items()}
    for shard in plan.shards():
        part = _made_part(shard, paths[shard.split])
        with (out / shard.file_name).open("wb") as file:
            file.truncate(part.facts.num_bytes)
        parts.save(part)


def _made_part(shard: PackShard, paths: pa.ChunkedArray) -> Part:
    """Return a part as a raw pack has them; one image in 1,000 could not be decoded."""
    rows = shard.rows
    count = len(rows)
    random = np.random.default_rng(int(rows[0]))
    is_bad = pa.array(rows % 1000 == 0)
    digests = pa.py_buffer(random.bytes(count * DIGEST_BYTES))
    columns: dict[str, Any] = {
        "row": rows,
        "path": paths.take(pa.array(rows)).combine_chunks(),
        "key": [f"n{row // 650:08}/n{row // 650:08}_{row * 7}" for row in rows.tolist()],
        "form": ["raw"] * count,
        "note": pa.nulls(count, pa.string()),
        "offset": np.arange(count) * _SAMPLE_BYTES + 512,
        "num_bytes": 100_000 + random.integers(0, 10_000, count),
        "source_bytes": 100_000 + random.integers(0, 10_000, count),
        "packed_digest": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(DIGEST_BYTES), count, [None, digests]
        ),
        "width": np.full(count, 341),
        "height": np.full(count, 256),
        "problem": pa.nulls(count, pa.string()),
        "detail": pa.nulls(count, pa.string()),
    }
    table = pa.table(columns).cast(PART_SCHEMA)
    bad = {"problem": "truncated", "detail": "image file is truncated (0 bytes not processed)"}
    for name in table.schema.names:
        if name not in ("row", "path"):
            field = table.schema.field(name)
            other = pa.scalar(bad.get(name), field.type)
            values = pa.compute.if_else(is_bad, other, table[name])
            table = table.set_column(table.schema.get_field_index(name), field, values)
    num_images = count - int((rows % 1000 == 0).sum())
    facts = CompletedShard(
        shard.file_name, shard.split, num_images, count * _SAMPLE_BYTES + 1024, "0" * 32
    )
    return Part(facts, table)


def resume(folder: Path, out: Path) -> None:
    """Run `pack` until it has asked for its first images, which are made up."""
    parts = CompletedShards(out)
    last = sorted(parts.folder.glob("*.parquet"))[-1]
    content = last.read_bytes()
    last.unlink()
    try:
        with suppress(ImageTreeError):
            pack(folder, out, LEVEL, PackOptions(), root=folder)
    finally:
        last.write_bytes(content)


def index(folder: Path, out: Path) -> None:
    """Run `pack` where all shards are there."""
    pack(folder, out, LEVEL, PackOptions(), root=folder)


STEPS = {"resume": resume, "index": index}


def run(step: str, folder: Path, out: Path) -> dict[str, float]:
    """Run a step in a process of its own; return its seconds and its memory in MiB."""
    command = [sys.executable, __file__, "--step", step, "--work", str(folder), "--out", str(out)]
    started = time.perf_counter()
    own = whole = 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            with suppress(OSError):
                found = _memory(process.pid)
                own, whole = max(own, found["RssAnon"]), max(whole, found["VmHWM"])
            time.sleep(_POLL_SECONDS)
    if process.returncode:
        raise RuntimeError(f"`{step}` ended with {process.returncode}")
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "own_mib": own / _MIB, "mapped_too_mib": whole / _MIB}


def _memory(pid: int) -> dict[str, int]:
    found = {"RssAnon": 0, "VmHWM": 0}
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) * 1024
    return found


def measure(folder: Path, num_rows: int) -> dict[str, Any]:
    """Make what is not there, and measure both steps."""
    manifests, out = folder / "manifests", folder / "pack"
    if not (manifests / VAL.file_name).exists():
        make_manifests(manifests, num_rows)
    if not CompletedShards(out).folder.is_dir():
        shutil.rmtree(out, ignore_errors=True)
        make_parts(manifests, out)
    steps = {step: run(step, manifests, out) for step in STEPS}
    digests = {
        path.name: hashlib.md5(path.read_bytes()).hexdigest()
        for path in sorted(out.iterdir())
        if path.suffix in {".parquet", ".json"}
    }
    return {"num_rows": num_rows, "steps": steps, "md5": digests}


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=bench_rows.NUM_ROWS)
    parser.add_argument("--work", type=Path, help="keep what was made here")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        STEPS[args.step](args.work, args.out)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(args.work or Path(scratch), args.rows)
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    print(f"{result['num_rows']:,} made-up images\n")
    print("| | s | memory of its own, MiB | with what is mapped, MiB |\n|---|--:|--:|--:|")
    for step, values in result["steps"].items():
        print(
            f"| {step} | {values['seconds']:.1f} | {values['own_mib']:,.0f} | "
            f"{values['mapped_too_mib']:,.0f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
