"""Extract features of images to Parquet, shard by shard; an interrupted run resumes.

A shard appears when it is complete; one with images that could not be read is written again by the
next run.  Batches never cross shards, so that each forward pass has the same images however often
a run was interrupted, and the files are byte-identical.

Dimensions: B images, L labels, N tokens, D features; `shape` is that of one image's features.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from vit21k.atomic import atomic_file, write_atomic
from vit21k.checkpoint.model_folder import ModelCard
from vit21k.data.dataset import ImageRows
from vit21k.data.decode import decode_rgb
from vit21k.data.transforms import normalise
from vit21k.device import Precision, autocast
from vit21k.errors import DataError, ImageError, UsageError, printable
from vit21k.inference.files import RowRange
from vit21k.inference.predict import image_loader
from vit21k.models.vit import ImageClassifier

Problem = tuple[str, str]
"""Path of an image that could not be read, and why."""

Dtype = Literal["float32", "float16"]

_PROBLEMS = b"vit21k.problems"
_UNREAD = b"vit21k.unread"
_TYPES = {"float32": pa.float32(), "float16": pa.float16()}


def schema_of(shape: tuple[int, ...], dtype: Dtype) -> pa.Schema:
    """Return the columns: path, label ids (empty if unknown), features.

    Features are lists of fixed size, of lists of fixed size for tokens.
    """
    features = _TYPES[dtype]
    for length in reversed(shape):
        features = pa.list_(features, length)
    return pa.schema(
        [("path", pa.string()), ("label_ids", pa.list_(pa.int64())), ("features", features)]
    )


def feature_rows(
    paths: Sequence[str],
    label_rows_L: NDArray[np.int64],
    label_ids_L: NDArray[np.int64],
    features: NDArray[np.floating],
    schema: pa.Schema,
) -> pa.Table:
    """Return a batch as rows of *schema*.

    Args:
        paths: Path of each image.
        label_rows_L: Which image each label belongs to, ascending.
        label_ids_L: Class index of each label.
        features: (B, *shape).
        schema: From `schema_of`.
    """
    offsets = np.searchsorted(label_rows_L, np.arange(len(paths) + 1)).astype(np.int32)
    values = pa.array(features.reshape(-1))
    for length in reversed(features.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, length)
    labels = pa.ListArray.from_arrays(pa.array(offsets), pa.array(label_ids_L))
    return pa.table([pa.array(paths, pa.string()), labels, values], schema=schema)


def write_shard(
    path: Path,
    batches: Sequence[pa.Table],
    problems: Sequence[Problem],
    schema: pa.Schema,
    *,
    num_unread: int = 0,
) -> None:
    """Write *batches* as one row group, atomically; *problems* are stored in the metadata.

    Args:
        path: The shard.
        batches: Its rows.
        problems: Images without a row.
        schema: From `schema_of`.
        num_unread: How many of *problems* could not be read, and may be readable later.

    Raises:
        OSError: The disk is full or failing; *path* does not exist.
    """
    schema = _with_problems(schema, problems)
    if num_unread:
        schema = schema.with_metadata({**schema.metadata, _UNREAD: str(num_unread).encode()})
    rows = pa.concat_tables([schema.empty_table(), *batches]).cast(schema)
    with atomic_file(path) as file, _writer(file, schema) as parquet:
        parquet.write_table(rows, row_group_size=max(1, len(rows)))


def problems_in(path: Path) -> list[Problem]:
    """Return the images without rows in a shard or a merged file.

    Raises:
        DataError: It is damaged.
    """
    with _reading(path):
        problems = json.loads(pq.read_schema(path).metadata[_PROBLEMS])
    return [(name, reason) for name, reason in problems]


def is_shard(path: Path, schema: pa.Schema, num_images: int) -> bool:
    """Return whether *path* is a complete shard of *num_images*, judging by its footer."""
    try:
        found = pq.read_metadata(path)
        num_problems = len(problems_in(path))
    except (OSError, DataError, ValueError):
        return False  # truncated or not a shard: `pyarrow.ArrowInvalid` is a ValueError
    same = found.schema.to_arrow_schema().remove_metadata().equals(schema.remove_metadata())
    is_read = _UNREAD not in pq.read_schema(path).metadata
    return same and is_read and found.num_rows + num_problems == num_images


def join_shards(shards: Sequence[Path], path: Path) -> None:
    """Write all *shards*, in order, to one file with a row group for each.

    Raises:
        DataError: A shard is damaged; *path* is unchanged.
        OSError: The disk is full or failing; *path* is unchanged.
    """
    problems = [problem for shard in shards for problem in problems_in(shard)]
    schema = _with_problems(pq.read_schema(shards[0]), problems)
    with atomic_file(path) as file, _writer(file, schema) as parquet:
        for shard in shards:
            with _reading(shard):
                rows = pq.read_table(shard, page_checksum_verification=True).cast(schema)
            if len(rows):
                parquet.write_table(rows, row_group_size=len(rows))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise a `DataError` if *path* is damaged."""
    try:
        yield
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"`{path}` is damaged: {str(error).partition(chr(10))[0]:.200}",
            hint="remove it and rerun the command: only its images are computed again",
        ) from error


def _with_problems(schema: pa.Schema, problems: Sequence[Problem]) -> pa.Schema:
    return schema.with_metadata({_PROBLEMS: json.dumps(problems).encode()})


def _writer(file: IO[bytes], schema: pa.Schema) -> pq.ParquetWriter:
    # Features do not compress.
    return pq.ParquetWriter(
        file,
        schema,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )


JOB = "features.json"
_SHARD_BYTES = 64 << 20
_MOST_SHARD_ROWS = 4096
_NUM_BYTES = {"float32": 4, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """Options of an extraction.

    Attributes:
        kind: "pooled": the input of the head; "tokens": all tokens after the last block.
        dtype: Type of the numbers in the file.
        device_batch_size: Maximum number of images in one forward pass.
        precision: Precision of the matrix products.
        shard_rows: Images per shard, rounded up to whole batches; None: about 64 MB, at most
            4,096.
    """

    kind: Literal["pooled", "tokens"] = "pooled"
    dtype: Dtype = "float32"
    device_batch_size: int = 32
    precision: Precision = "fp32"
    shard_rows: int | None = None


@dataclass
class FeatureReport:
    """Result of an extraction.

    Attributes:
        num_images: Number of images.
        num_resumed: Images in shards of an earlier run.
        shards: The files, in order.
        problems: Path of each image that could not be read, and why.
    """

    num_images: int
    num_resumed: int = 0
    shards: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Counts of images that add up."""
        return {
            "num_images": self.num_images,
            "num_written": self.num_images - len(self.problems),
            "num_problems": len(self.problems),
            "num_resumed": self.num_resumed,
        }


def extract_features(
    model: ImageClassifier,
    card: ModelCard,
    images: ImageRows,
    folder: Path,
    options: FeatureOptions,
    *,
    num_workers: int | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> FeatureReport:
    """Write the features of *images* to shards in *folder*, except complete ones.

    Args:
        model: From `load_model`, on the device to compute on.
        card: From `load_model`.
        images: The images; a resumed run assumes that their files are unchanged.
        folder: Folder of `features-00000.parquet`, ..., and `features.json`, which identifies
            them.  One process at a time.
        options: Which features.
        num_workers: Decoding threads; None: one per core.
        advance: Called with the number of images done in a step.

    Raises:
        UsageError: The folder holds features of other images, another model or other options.
        OSError: The disk is full or failing; existing shards are complete.
    """
    shape = _shape(model, options)
    schema = schema_of(shape, options.dtype)
    shard_rows = _shard_rows(options, shape)
    _claim(folder, _identity(model, card, images, options, shard_rows))
    report = FeatureReport(len(images))
    for start in range(0, len(images), shard_rows):
        rows = range(start, min(start + shard_rows, len(images)))
        path = folder / f"features-{start // shard_rows:05d}.parquet"
        if is_shard(path, schema, len(rows)):
            report.num_resumed += len(rows)
            advance(len(rows))
        else:
            part = RowRange(images, rows)
            batches, problems, num_unread = _compute_part(
                model, card, part, options, schema, num_workers, advance
            )
            write_shard(path, batches, problems, schema, num_unread=num_unread)
        report.shards.append(path)
        report.problems += problems_in(path)
    return report


def compute_features(
    model: ImageClassifier, card: ModelCard, images_BCHW: Tensor, options: FeatureOptions
) -> Tensor:
    """Return features_BD, or tokens_BND, of resized uint8 images."""
    settings, device = card.eval_settings, model.device
    with torch.inference_mode(), autocast(device, options.precision):
        x_BCHW = normalise(images_BCHW.to(device), settings.mean, settings.std)
        values = _forward(model, options)(x_BCHW)
    return values.to(getattr(torch, options.dtype)).cpu()


def _compute_part(
    model: ImageClassifier,
    card: ModelCard,
    part: ImageRows,
    options: FeatureOptions,
    schema: pa.Schema,
    num_workers: int | None,
    advance: Callable[[int], object],
) -> tuple[list[pa.Table], list[Problem], int]:
    """Return the rows of a part, the problems of the other images, and how many were unread."""
    tables = []
    left = set(range(len(part)))
    with image_loader(card, part, options.device_batch_size, num_workers) as loader:
        for batch in loader:
            values = compute_features(model, card, batch.images_BCHW, options)
            tables.append(
                feature_rows(
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


def _is_damaged(images: ImageRows, row: int) -> bool:
    """Return whether an image can be read but not decoded."""
    try:
        content = images.read_bytes(row)
    except (ImageError, OSError):
        return False
    try:
        decode_rgb(content)
    except ImageError:
        return True
    return False


def _shape(model: ImageClassifier, options: FeatureOptions) -> tuple[int, ...]:
    """Return the shape of one image's features, from one forward pass."""
    images_BCHW = torch.zeros(1, 3, model.img_size, model.img_size, device=model.device)
    with torch.inference_mode():
        return tuple(_forward(model, options)(images_BCHW).shape[1:])


def _forward(model: ImageClassifier, options: FeatureOptions) -> Callable[[Tensor], Tensor]:
    return model.features if options.kind == "pooled" else model.forward_features


def _shard_rows(options: FeatureOptions, shape: tuple[int, ...]) -> int:
    row_bytes = _NUM_BYTES[options.dtype] * torch.Size(shape).numel()
    wanted = options.shard_rows or min(_MOST_SHARD_ROWS, _SHARD_BYTES // row_bytes)
    batch_size = options.device_batch_size
    return max(1, -(-wanted // batch_size)) * batch_size


def _identity(
    model: ImageClassifier,
    card: ModelCard,
    images: ImageRows,
    options: FeatureOptions,
    shard_rows: int,
) -> dict[str, Any]:
    """Return what the features depend on."""
    weights, names = xxhash.xxh3_128(), xxhash.xxh3_128()
    for name, tensor in model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    for row in range(len(images)):
        names.update(printable(images.path(row)).encode() + b"\0")
    return {
        "weights": weights.hexdigest(),
        "preprocessing": asdict(card.eval_settings),
        "images": names.hexdigest(),
        "num_images": len(images),
        **asdict(options),
        "shard_rows": shard_rows,
    }


def _claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write `features.json`, or check that the existing one is equal.

    Raises:
        UsageError: It differs.
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
