"""WebDataset shards: tars in which neighbours with one key are a sample.

Members are called `<key>.jpg`, `<key>.cls`, `<key>.json`: the key is the path up to the first dot
of its name, as in webdataset and datasets.  Where the class comes from is decided once for a
source, by its first samples.  What is tried, in this order:

1. names in `.json`: `wnids` (vit21k's own packs), `wnid`, `synset`, `class_name` (timm),
   `classname`, `class`, `label_name`, `label`, `labels`
2. a name in `.cls`
3. a WordNet id in the key: `n01440764_10026`, `n01440764/10026`
4. a WordNet id as the folder of a path in `.json`: `filename` (timm), `file_name`, `path`
5. class indices, if there is a class list: `.cls`, then `label` and `labels` in `.json`; with
   `--classes` these come first

Other labels that contradict the selected one (another WordNet id, another index) are refused; or
listed, if they are met later.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from vit21k.errors import LayoutError, printable
from vit21k.manifest.archive_names import archive_stem
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.sources.archive_file import ArchiveFile
from vit21k.sources.container import (
    ByteSource,
    ContainerImage,
    ContainerItems,
    LabelOptions,
    flaw_of_class_name,
    split_of,
)
from vit21k.sources.gzip_tar import DAMAGE, GZIP, GzipStream, flaw_of_stream, unpack
from vit21k.sources.tar import MAX_MEMBER_BYTES, Member, SeekableSource, Window, read_members

_NAME_FIELDS = ("wnids", "wnid", "synset", "class_name", "classname", "class", "label_name")
_LABEL_FIELDS = ("label", "labels")
_PATH_FIELDS = ("filename", "file_name", "path")
_PACKED = "json:wnids"

_NAMES = (*(f"json:{name}" for name in (*_NAME_FIELDS, *_LABEL_FIELDS)), "cls")
_WNIDS = ("key", *(f"json:{name}" for name in _PATH_FIELDS))
_FIELDS = sorted({*_NAME_FIELDS, *_LABEL_FIELDS, *_PATH_FIELDS})
_INDICES = ("cls", *(f"json:{name}" for name in _LABEL_FIELDS))

LABEL_FIELDS = frozenset({"cls", "json"})
"""Fields of a sample that may hold its label."""

IMAGE_FIELDS = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm"})

_KEY = re.compile(r"((?:.*/)?[^./][^.]*)\.([^/]+)")
_WNID_KEY = re.compile(r"(?:.*/)?(n\d{8})(?:[_-][^/]*|/[^/]*)?")
_WNID = re.compile(r"n\d{8}")
_INTEGER = re.compile(r"[+-]?\d{1,18}")

_Label = str | int | tuple[str | int, ...]
"""A label as it is stored: a class name or index, or several."""

_AHEAD_BYTES = 4096
_MAX_LABEL_BYTES = 1 << 20
_NUM_PREVIEWED = 32
_PREVIEW_BYTES = 1 << 16


class _Image(NamedTuple):
    """An image of a sample: where it is, and its bytes while `fill` is None or the window's."""

    path: str
    field: str
    offset: int
    num_bytes: int
    content: memoryview | bytes
    fill: int | None


@dataclass
class Sample:
    """Neighbours in a shard that share a key.

    Attributes:
        key: With its folders.
        images: Those that may be read.
        labels: Content of `.cls` and `.json`, by field.
        members: Names of all others.
    """

    key: str
    images: list[_Image] = field(default_factory=list)
    labels: dict[str, bytes] = field(default_factory=dict)
    members: list[str] = field(default_factory=list)

    @cached_property
    def json(self) -> dict[str, Any]:
        """The fields in `.json`.

        Raises:
            _NoLabelError: There is none, or it is malformed.
        """
        if "json" not in self.labels:
            raise _NoLabelError("no .json")
        try:
            fields = json.loads(self.labels["json"])
        except (ValueError, RecursionError) as error:
            raise _NoLabelError(f"malformed .json: {error}") from None
        if not isinstance(fields, dict):
            raise _NoLabelError("malformed .json: not an object")
        return fields


class _NoLabelError(Exception):
    """A sample has no label where it should have one."""


class ShardEntry(NamedTuple):
    """The entry of a shard in `_info.json`."""

    split: str | None
    num_images: int | None


NO_FACTS = ShardEntry(None, None)


def read_webdataset(
    source: ByteSource, path: str, labels: LabelOptions, facts: ShardEntry = NO_FACTS
) -> ContainerItems:
    """Yield the images of a shard, and what is wrong with it, in its order.

    Args:
        source: The shard.
        path: Relative to the root.
        labels: With `label_from`, as `detect_labels` returns them.
        facts: Of the shard, in `_info.json`.

    Raises:
        OSError: The shard cannot be read.
    """
    if not isinstance(source, ArchiveFile) or not source.is_gzip:
        yield from _read_window(Window(SeekableSource(source)), None, path, labels, facts)
        return
    try:
        with closing(unpack(source)) as stream:
            yield from _read_window(Window(stream), GZIP, path, labels, facts)
    except DAMAGE as error:
        yield Problem(path, *flaw_of_stream(error))


def _read_window(
    window: Window, storage: str | None, path: str, labels: LabelOptions, facts: ShardEntry
) -> ContainerItems:
    read = _LabelReader(labels, path)
    split = facts.split or split_of(path)
    num_images = 0
    for sample in read_samples(window, path):
        if isinstance(sample, Problem):
            yield sample
            continue
        image = _only_image(sample, path, labels.image_column)
        if isinstance(image, _Image):
            num_images += 1
            item = _with_label(image, sample, read, window)
            if isinstance(item, ContainerImage):
                item = item._replace(storage=storage, split=split)
            yield item
        else:
            yield from image
    if facts.num_images is not None and num_images != facts.num_images:
        detail = f"has {num_images:,} of {facts.num_images:,} images"
        yield Problem(path, ProblemKind.SHARD_DIFFERS, detail)


def _with_label(
    image: _Image,
    sample: Sample,
    read: "_LabelReader",
    window: Window,
) -> ContainerImage | Problem:
    try:
        names = read(sample)
    except _NoLabelError as error:
        return Problem(image.path, ProblemKind.LABEL_MISSING, str(error))
    content = image.content
    if image.fill not in {None, window.num_fills}:
        content = window.read_again(image.offset, image.num_bytes)
    label = names[0] if len(names) == 1 else names or None
    return ContainerImage(image.path, label, image.offset, image.num_bytes, None, content)


def _only_image(
    sample: Sample, container: str, image_field: str | None
) -> _Image | Sequence[Problem]:
    """Return the image of *sample*; or why it has none."""
    images = [image for image in sample.images if image_field in (None, image.field)]
    if len(images) == 1:
        return images[0]
    if len(images) > 1:
        fields = ", ".join(f"`{image.field}`" for image in images)
        return [Problem(image.path, ProblemKind.SEVERAL_IMAGES, fields) for image in images]
    return [Problem(f"{container}/{name}", ProblemKind.OTHER_SUFFIX, "") for name in sample.members]


def read_samples(
    window: Window, container: str, *, has_content: bool = True
) -> Iterator[Sample | Problem]:
    """Yield the samples of the shard at *window*, and what is wrong with it, in its order.

    Args:
        window: At the first header.
        container: Path of the shard.
        has_content: Read images too, not only what may hold their labels.
    """
    sample = Sample("")
    for member in read_members(window):
        name = _name_of(member)
        if isinstance(name, ProblemKind) or member.flaw:
            yield _problem_of(member, name, container)
            continue
        key, suffix = name
        if key != sample.key:
            if sample.key:
                yield sample
            sample = Sample(key)
        problem = _add(sample, suffix, member, window, container, has_content=has_content)
        if problem is not None:
            yield problem
    if sample.key:
        yield sample


def _name_of(member: Member) -> tuple[str, str] | ProblemKind:
    """Return key and suffix of *member*; why it has none."""
    try:
        name = member.name.decode()
    except UnicodeDecodeError:
        return ProblemKind.NAME_NOT_UTF8
    found = _KEY.fullmatch(name)
    if found is None or "/." in name:
        is_hidden = name.startswith(".") or "/." in name
        return ProblemKind.HIDDEN if is_hidden else ProblemKind.OTHER_SUFFIX
    return found[1], found[2].lower()


def _problem_of(member: Member, name: tuple[str, str] | ProblemKind, container: str) -> Problem:
    path = f"{container}/{printable(member.name)}" if member.name else container
    if member.flaw is not None:
        return Problem(path, *member.flaw)
    return Problem(path, name if isinstance(name, ProblemKind) else ProblemKind.OTHER_SUFFIX, "")


def _add(
    sample: Sample,
    suffix: str,
    member: Member,
    window: Window,
    container: str,
    *,
    has_content: bool,
) -> Problem | None:
    """Add *member* to *sample*; return what is wrong with it, if anything."""
    path = f"{container}/{member.name.decode()}"
    if suffix.rpartition(".")[2] in IMAGE_FIELDS:
        return _add_image(sample, suffix, member, window, path, has_content=has_content)
    sample.members.append(member.name.decode())
    if suffix not in LABEL_FIELDS:
        return None
    if member.num_bytes > _MAX_LABEL_BYTES:
        return Problem(path, ProblemKind.MEMBER_TOO_LARGE, f"{member.num_bytes:,} bytes")
    is_second = suffix in sample.labels
    sample.labels[suffix] = bytes(window.take(member.num_bytes))
    return Problem(path, ProblemKind.DUPLICATE_MEMBER, "") if is_second else None


def _add_image(
    sample: Sample,
    suffix: str,
    member: Member,
    window: Window,
    path: str,
    *,
    has_content: bool,
) -> Problem | None:
    num_bytes = member.num_bytes
    if num_bytes > MAX_MEMBER_BYTES:
        return Problem(path, ProblemKind.MEMBER_TOO_LARGE, f"{num_bytes:,} bytes")
    if not num_bytes:
        return Problem(path, ProblemKind.EMPTY, "")
    content: memoryview | bytes = b""
    if has_content:
        window.read_ahead(num_bytes + _AHEAD_BYTES)  # the label behind it, too
        content = window.take(num_bytes)
        if len(content) < num_bytes:
            detail = f"has {len(content):,} of {num_bytes:,} bytes"
            return Problem(path, ProblemKind.ARCHIVE_TRUNCATED, detail)
    fill = window.num_fills if window.can_jump() else None
    content = content if window.can_jump() else bytes(content)
    image = _Image(path, suffix, member.offset, num_bytes, content, fill)
    before = [one for one in sample.images if one.path == path]
    sample.images = [one for one in sample.images if one.path != path] + [image]
    if before:
        detail = f"at offset {before[0].offset:,}"
        return Problem(path, ProblemKind.DUPLICATE_MEMBER, detail)
    return None


class _LabelReader:
    """Returns the class names of a sample; none if it is unlabelled.

    Raises:
        _NoLabelError: Its label is missing, malformed or contradicts another one.
    """

    def __init__(self, labels: LabelOptions, container: str) -> None:
        self._labels = labels
        self._container = container
        self._label_from = labels.label_from or ""
        self._is_checked = labels.is_detected and self._label_from != _PACKED
        self._names: dict[_Label, tuple[str, ...]] = {}  # of labels met before

    def __call__(self, sample: Sample) -> tuple[str, ...]:
        value = raw_label(sample, self._label_from, self._container)
        names = self._names_of(value)
        if self._is_checked and (detail := _contradiction(sample, self._label_from, names)):
            raise _NoLabelError(detail)
        return names

    def _names_of(self, value: _Label) -> tuple[str, ...]:
        names = self._names.get(value)
        if names is None:
            values = value if isinstance(value, tuple) else (value,)
            names = tuple(dict.fromkeys(filter(None, map(self._name_of, values))))
            self._names[value] = names
        return names

    def _name_of(self, value: str | int) -> str | None:
        if isinstance(value, str):
            if flaw := flaw_of_class_name(value):
                raise _NoLabelError(flaw)
            return value
        try:
            return self._labels.name_of_index(value, self._container)
        except LayoutError as error:
            raise _NoLabelError(error.message) from None


def raw_label(sample: Sample, label_from: str, container: str) -> _Label:
    """Return the label of *sample* as it is stored: a class name or index, or several.

    Args:
        sample: Of a shard.
        label_from: As in `LabelOptions`.
        container: Path of the shard, whose folders are above those of the key.

    Raises:
        _NoLabelError: There is none.
    """
    if label_from.startswith("json:"):
        return _json_label(sample, label_from.removeprefix("json:"))
    if label_from == "cls":
        return _cls_label(sample)
    if label_from == "key":
        return _key_label(sample.key)
    return _folder_label(f"{container}/{sample.key}", label_from)


def _json_label(sample: Sample, name: str) -> _Label:
    fields = sample.json
    if name not in fields:
        raise _NoLabelError(f"no field `{name}` in .json")
    value = fields[name]
    if isinstance(value, str):
        return _folder_of(value) if name in _PATH_FIELDS else value
    values = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if any(isinstance(one, bool) or not isinstance(one, str | int) for one in values):
        raise _NoLabelError(f"`{name}` in .json is neither a class name nor an index")
    return values[0] if isinstance(value, int) else values


def _folder_of(path: str) -> str:
    return path.rpartition("/")[0].rpartition("/")[2]


def _cls_label(sample: Sample) -> str | int:
    if "cls" not in sample.labels:
        raise _NoLabelError("no .cls")
    try:
        text = sample.labels["cls"].decode().strip()
    except UnicodeDecodeError:
        raise _NoLabelError("malformed .cls: not UTF-8") from None
    return int(text) if _INTEGER.fullmatch(text) else text


def _key_label(key: str) -> str:
    """Return the WordNet id in *key*, else what comes before its last underscore."""
    if found := _WNID_KEY.fullmatch(key):
        return found[1]
    name, underscore, _ = key.rpartition("/")[2].rpartition("_")
    if not underscore:
        raise _NoLabelError("no class in its key, such as `n01440764` in `n01440764_10026`")
    return name


def class_in_key(path: str) -> str | Problem:
    """Return the class in the name of an image, such as `n01440764_10026.JPEG`; or why not."""
    try:
        return _key_label(path.rpartition(".")[0])
    except _NoLabelError as error:
        return Problem(path, ProblemKind.LABEL_MISSING, str(error))


def _folder_label(path: str, label_from: str) -> str:
    """Return the folder of *path* that is its class; the name of the shard counts as one."""
    folders = path.split("/")[:-1]
    index = {"folder": -1, "parent": -2, "top": 0}[label_from]
    if label_from == "parent" and len(folders) < -index:
        raise _NoLabelError("there is no folder above that of its key")
    return (archive_stem(folders[index].encode()) or folders[index].encode()).decode()


def _contradiction(sample: Sample, label_from: str, names: Sequence[str]) -> str | None:
    """Return what in *sample* names another WordNet id than *names*, or another index."""
    if label_from in _INDICES:
        index = _stored(sample, label_from)
        for other in _INDICES:
            value = _stored(sample, other)
            if isinstance(value, int) and value != index:
                return f"{label_source(label_from)} is {index}, {label_source(other)} is {value}"
    if not names or not all(map(_WNID.fullmatch, names)):
        return None
    for other, wnid in _wnids_in(sample):
        if wnid not in names and other != label_from:
            return f"{label_source(label_from)} is {names[0]}, {label_source(other)} is {wnid}"
    return None


def _wnids_in(sample: Sample) -> Iterator[tuple[str, str]]:
    """Yield the WordNet ids in *sample*, and where they are, as a `label_from`."""
    if found := _WNID_KEY.fullmatch(sample.key):
        yield "key", found[1]
    fields = _json_of(sample)
    for name in _FIELDS:
        value = fields.get(name)
        if isinstance(value, str):
            value = _folder_of(value) if name in _PATH_FIELDS else value
            if _WNID.fullmatch(value):
                yield f"json:{name}", value


def _json_of(sample: Sample) -> dict[str, Any]:
    try:
        return sample.json
    except _NoLabelError:
        return {}


def _stored(sample: Sample, label_from: str) -> _Label | None:
    """Return the label of *sample* as it is stored in one place; None if it is not there."""
    try:
        return raw_label(sample, label_from, "")
    except _NoLabelError:
        return None


def label_source(label_from: str) -> str:
    """Return where *label_from* takes the class from, for messages."""
    kind, _, name = label_from.partition(":")
    words = {
        "json": f"the .json field `{name}`",
        "column": f"the column `{name}`",
        "cls": ".cls",
        "key": "the key (`n01440764_10026`)",
        "folder": "the name of the folder",
        "parent": "the name of the folder above that of the image",
        "top": "the first folder below the root",
    }
    return words[kind]


def preview(source: ByteSource, path: str) -> list[Sample]:
    """Return the first samples of a shard, up to its first fault, without bytes of images.

    Raises:
        OSError: The shard cannot be read.
    """
    samples: list[Sample] = []
    with suppress(*DAMAGE):
        for sample in read_samples(window_of(source, _PREVIEW_BYTES), path, has_content=False):
            if isinstance(sample, Sample):
                samples += [sample] if sample.images else []
            elif not sample.kind.is_skipped:
                break  # the next sample may lack what is damaged
            if len(samples) == _NUM_PREVIEWED:
                break
    return samples


def window_of(source: ByteSource, num_bytes: int) -> Window:
    """Return a window of *num_bytes* at the begin of a tar, compressed or not."""
    if isinstance(source, ArchiveFile) and source.is_gzip:
        return Window(GzipStream(source.read_at), window_bytes=num_bytes)
    return Window(SeekableSource(source), window_bytes=num_bytes)


def detect_labels(samples: Sequence[Sample], labels: LabelOptions, name: str) -> LabelOptions:
    """Return *labels* with the `label_from` that all of *samples* have.

    Args:
        samples: The first of some shards; there are some.
        labels: What the user says.
        name: Of the source, for messages.

    Raises:
        LayoutError: None says what the classes are, or two contradict each other.
    """
    if labels.label_from is not None:
        _check(samples, labels, name)
        return labels
    for label_from, is_label in _candidates(labels):
        values = [_stored(sample, label_from) for sample in samples]
        if any(value not in {None, ()} for value in values) and all(
            value is not None and is_label(value) for value in values
        ):
            found = replace(labels, label_from=label_from, is_detected=True)
            _check(samples, found, name)
            return found
    raise _ambiguous(samples, labels, name)


def _candidates(labels: LabelOptions) -> list[tuple[str, Callable[[_Label], bool]]]:
    names: list[tuple[str, Callable[[_Label], bool]]] = [
        *((one, _is_name) for one in _NAMES),
        *((one, _is_wnid) for one in _WNIDS),
    ]
    if labels.class_names is None:
        return names
    indices: list[tuple[str, Callable[[_Label], bool]]] = [(one, _is_index) for one in _INDICES]
    return indices + names if labels.are_classes_given else names + indices


def _is_name(value: _Label) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_name, value))
    return isinstance(value, str) and bool(value) and not _INTEGER.fullmatch(value)


def _is_wnid(value: _Label) -> bool:
    return isinstance(value, str) and _WNID.fullmatch(value) is not None


def _is_index(value: _Label) -> bool:
    return isinstance(value, int) or (isinstance(value, tuple) and all(map(_is_index, value)))


def _check(samples: Sequence[Sample], labels: LabelOptions, name: str) -> None:
    """Refuse *labels* if they do not say the class of the first sample that has any."""
    read = _LabelReader(labels, name)
    errors = []
    for sample in samples:
        try:
            read(sample)
        except _NoLabelError as error:
            errors.append((sample, str(error)))
    is_contradiction = labels.is_detected and errors
    if is_contradiction or len(errors) == len(samples):
        sample, detail = errors[0]
        raise LayoutError(
            f"the class of `{sample.images[0].path}` is not clear: {detail}",
            hint=_options(samples),
        )


def _ambiguous(samples: Sequence[Sample], labels: LabelOptions, name: str) -> LayoutError:
    stored = [_stored(sample, one) for sample in samples for one in _INDICES]
    if labels.class_names is None and any(isinstance(value, int) for value in stored):
        return LayoutError(
            f"the labels in `{name}` are class indices without class names",
            hint="give the class names in the order of the indices: `--classes LIST` (a known "
            f"list such as fall11, or a file with a name per line); or {_options(samples)}",
        )
    return LayoutError(
        f"`{name}` is a WebDataset without a class for every image", hint=_options(samples)
    )


def _options(samples: Sequence[Sample]) -> str:
    """Return the options that select a label which some of *samples* have."""
    fields = {name: None for sample in samples for name in _json_of(sample)}
    has_cls = any("cls" in sample.labels for sample in samples)
    options = [f"`json:{name}`" for name in fields if name.isidentifier()][:10]
    options += ["`cls`"] if has_cls else []
    options += ["`key` (`n01440764_10026`)", "`folder`"]
    return (
        f"select the class with `--label-from`: {', '.join(options)}; or give a list of file names "
        "and classes: `--labels FILE`"
    )
