"""Model and pictures -> features in Parquet, shard by shard: a run goes on where it was killed.

A shard is there when it is whole; one with pictures that could not be read is made again by the
next run.  Batches never cross shards, so that the same pictures meet in
the same forward pass however often a run was killed, and the bytes come out the same.

Dimensions: B images, N tokens, D features.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
import xxhash
from torch import Tensor

from vit21k.atomic import write_atomic
from vit21k.checkpoint.model_folder import ModelCard
from vit21k.data.picture_file import open_picture
from vit21k.data.rows import PictureRows
from vit21k.errors import ImageError, UsageError
from vit21k.inference.evaluate import normalise
from vit21k.inference.feature_shards import (
    Dtype,
    Problem,
    is_shard,
    problems_in,
    rows_of,
    schema_of,
    write_shard,
)
from vit21k.inference.files import RowRange
from vit21k.inference.predict import picture_loader
from vit21k.models.base import ImageClassifier
from vit21k.models.precision import Precision, autocast
from vit21k.one_line import printable

JOB = "features.json"
_SHARD_BYTES = 64 << 20
_MOST_SHARD_ROWS = 4096
_NUM_BYTES = {"float32": 4, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class FeaturePlan:
    """What is computed, and how.

    Attributes:
        kind: "pooled": what the head reads; "tokens": all tokens after the last block.
        dtype: Of the numbers in the file.
        device_batch_size: The most pictures in one forward pass.
        precision: Of the matrix products.
        shard_rows: Pictures of a shard, rounded up to whole batches; None: as many as make about
            64 MB, at most 4,096.
    """

    kind: Literal["pooled", "tokens"] = "pooled"
    dtype: Dtype = "float32"
    device_batch_size: int = 32
    precision: Precision = "fp32"
    shard_rows: int | None = None


@dataclass
class FeatureReport:
    """What came out.

    Attributes:
        shards: The files, in order.
        num_pictures: How many pictures were asked for.
        num_resumed: Those in shards that were there already.
        problems: Path of each picture that could not be read, and why.
    """

    num_pictures: int
    num_resumed: int = 0
    shards: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def extract_features(
    model: ImageClassifier,
    card: ModelCard,
    pictures: PictureRows,
    folder: Path,
    plan: FeaturePlan,
    *,
    num_workers: int | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> FeatureReport:
    """Write the features of *pictures* to shards in *folder*, except those that are there.

    Args:
        model: From `load_model`, on the device it is to compute on.
        card: From `load_model`.
        pictures: Which; the files are taken to be the same when a run goes on.
        folder: Where `features-00000.parquet`, ... are written, and `features.json`, which says
            what they are.  One process at a time.
        plan: What is computed.
        num_workers: Threads that decode; None: one for each core.
        advance: Called with the number of pictures that a step has done.

    Raises:
        UsageError: The folder holds features of other pictures, another model or another plan.
        OSError: The disk is full or failing; the shards that are there are whole.
    """
    shape = _shape(model, plan)
    schema = schema_of(shape, plan.dtype)
    shard_rows = _shard_rows(plan, shape)
    _claim(folder, _identity(model, card, pictures, plan, shard_rows))
    report = FeatureReport(len(pictures))
    for start in range(0, len(pictures), shard_rows):
        rows = range(start, min(start + shard_rows, len(pictures)))
        path = folder / f"features-{start // shard_rows:05d}.parquet"
        if is_shard(path, schema, len(rows)):
            report.num_resumed += len(rows)
            advance(len(rows))
        else:
            part = RowRange(pictures, rows)
            batches, problems, num_unread = _compute_part(
                model, card, part, plan, schema, num_workers, advance
            )
            write_shard(path, batches, problems, schema, num_unread=num_unread)
        report.shards.append(path)
        report.problems += problems_in(path)
    return report


def compute_features(
    model: ImageClassifier, card: ModelCard, images_BCHW: Tensor, plan: FeaturePlan
) -> Tensor:
    """Return features_BD, or tokens_BND, of uint8 images that are ready for the model."""
    settings, device = card.eval_settings, model.pos_embed.device
    with torch.inference_mode(), autocast(device, plan.precision):
        x_BCHW = normalise(images_BCHW.to(device), settings.mean, settings.std)
        values = model.features(x_BCHW) if plan.kind == "pooled" else model.forward_features(x_BCHW)
    return values.to(getattr(torch, plan.dtype)).cpu()


def _compute_part(
    model: ImageClassifier,
    card: ModelCard,
    part: PictureRows,
    plan: FeaturePlan,
    schema: pa.Schema,
    num_workers: int | None,
    advance: Callable[[int], object],
) -> tuple[list[pa.Table], list[Problem], int]:
    """Return the rows of a part, what is wrong with the others, and how many were not read."""
    tables = []
    left = set(range(len(part)))
    with picture_loader(card, part, plan.device_batch_size, num_workers) as loader:
        for batch in loader:
            values = compute_features(model, card, batch.images_BCHW, plan)
            tables.append(
                rows_of(
                    [printable(part.path(row)) for row in batch.rows_B.tolist()],
                    batch.label_rows_L.numpy(),
                    batch.label_ids_L.numpy(),
                    values.numpy(),
                    schema,
                )
            )
            left -= set(batch.rows_B.tolist())
            advance(len(batch.rows_B))
        advance(loader.num_skipped)
        skipped = sorted(loader.skipped.items())
    problems = [(printable(Path(path)), reason) for path, reason in skipped]
    return tables, problems, sum(not _is_damaged(part, row) for row in left)


def _is_damaged(pictures: PictureRows, row: int) -> bool:
    """Return whether a picture can be read, and not be decoded."""
    try:
        content = pictures.read_bytes(row)
    except (ImageError, OSError):
        return False
    try:
        open_picture(content).image()
    except ImageError:
        return True
    return False


def _shape(model: ImageClassifier, plan: FeaturePlan) -> tuple[int, ...]:
    """Return the shape of one picture's features, from one forward pass."""
    images_BCHW = model.pos_embed.new_zeros(1, 3, model.img_size, model.img_size)
    with torch.inference_mode():
        forward = model.features if plan.kind == "pooled" else model.forward_features
        return tuple(forward(images_BCHW).shape[1:])


def _shard_rows(plan: FeaturePlan, shape: tuple[int, ...]) -> int:
    row_bytes = _NUM_BYTES[plan.dtype] * torch.Size(shape).numel()
    wanted = plan.shard_rows or min(_MOST_SHARD_ROWS, _SHARD_BYTES // row_bytes)
    batch_size = plan.device_batch_size
    return max(1, -(-wanted // batch_size)) * batch_size


def _identity(
    model: ImageClassifier,
    card: ModelCard,
    pictures: PictureRows,
    plan: FeaturePlan,
    shard_rows: int,
) -> dict[str, Any]:
    """Return what makes the features what they are."""
    weights, names = xxhash.xxh3_128(), xxhash.xxh3_128()
    for name, tensor in model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    for row in range(len(pictures)):
        names.update(printable(pictures.path(row)).encode() + b"\0")
    return {
        "weights": weights.hexdigest(),
        "preprocessing": asdict(card.eval_settings),
        "pictures": names.hexdigest(),
        "num_pictures": len(pictures),
        **asdict(plan),
        "shard_rows": shard_rows,
    }


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write `features.json`, or check that what is there says the same.

    Raises:
        UsageError: It says something else, or the folder holds something else.
    """
    path = folder / JOB
    wanted = json.loads(json.dumps(identity))
    if not path.exists():
        write_atomic(path, (json.dumps(identity, indent=2) + "\n").encode())
        return
    try:
        found = json.loads(path.read_bytes())
        differing = [name for name in wanted if found.get(name) != wanted[name]]
    except (ValueError, AttributeError):
        differing = [JOB]
    if differing:
        raise UsageError(
            f"`{folder}` holds other features: {', '.join(differing)} differ",
            hint="write to another folder, or remove this one",
        )
