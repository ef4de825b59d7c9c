"""Known class lists, lists from files and folders, and how to identify one."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vit21k.errors import ManifestError, UsageError
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import damage_is_an_error
from vit21k.manifest.layout import SPLIT_OF, Layout
from vit21k.manifest.wordnet import names_of


@dataclass(frozen=True, kw_only=True)
class KnownList:
    """A class list of vit21k.

    Attributes:
        name: Its name on the command line.
        num_classes: Its length.
        what: Data sets that use it, and its order.
        source: Repository and path of the file it was read from, with its licence.
        fingerprint: Fingerprint of its `ClassList`.
    """

    name: str
    num_classes: int
    what: str
    source: str
    fingerprint: str


TIMM = "timm, timm/data/_info/{}.txt, Apache-2.0"
"""Source of the lists that the installed package timm has."""

KNOWN_LISTS = {
    known.name: known
    for known in (
        KnownList(
            name="fall11",
            num_classes=21_841,
            source=TIMM.format("imagenet22k_synsets"),
            what='fall11_whole.tar, the whole ImageNet-21K ("22k"); ascending, as PLSC numbers it',
            fingerprint="6320b72b72e43c09a768f0253d28c3b55707760bbf3b9d308887800b0d86658d",
        ),
        KnownList(
            name="winter21",
            num_classes=19_167,
            source="birder-project/birder, public_datasets_metadata/imagenet-21k-classes.txt "
            "at commit 207a7a9, Apache-2.0",
            what="winter21_whole.tar.gz: fall11 without 2,674 classes of people; ascending",
            fingerprint="9d503206d24cc44fee69542e5b011b82aa513ec614129060886ebeec52ace22c",
        ),
        KnownList(
            name="in21k-p",
            num_classes=11_221,
            source=TIMM.format("imagenet21k_miil_synsets"),
            what="ImageNet-21K-P from fall11: classes with more than 500 images; ascending",
            fingerprint="e96927e3af1cf32cd60c35b4407ba6e16396a2696feefed66c4017b403c5596a",
        ),
        KnownList(
            name="in21k-p-winter21",
            num_classes=10_450,
            source=TIMM.format("imagenet21k_miil_w21_synsets"),
            what="ImageNet-21K-P from winter21; ascending",
            fingerprint="68202583aa200623fa7f326a1a4f8ff8f9a2e33ee8cd78ae16d52fb34e345dd4",
        ),
        KnownList(
            name="in12k",
            num_classes=11_821,
            source=TIMM.format("imagenet12k_synsets"),
            what="timm's ImageNet-12k: the larger classes of fall11; ascending",
            fingerprint="009d4c9f19667ccf35878fb10718a90ccc9afe27004b4d42880d5feab073a3b1",
        ),
        KnownList(
            name="google",
            num_classes=21_843,
            source=TIMM.format("imagenet21k_goog_synsets"),
            what="BiT, ViT, big_vision: fall11 and n03931044, n09859684; ascending in timm's file, "
            "which was not compared with one of Google's",
            fingerprint="c03345e3490e010defaeac86b00012db28ecb79af13daba0b72525fa37c66e94",
        ),
        KnownList(
            name="microsoft",
            num_classes=21_842,
            source=TIMM.format("imagenet22k_ms_synsets"),
            what="Swin and others: ImageNet-1k first, then the rest of fall11; with the teddy",
            fingerprint="57d68b4f40ef1181c022b488650d3fcb08ab4a95dc7d75d286fff16922ee6c2d",
        ),
        KnownList(
            name="in1k",
            num_classes=1_000,
            source=TIMM.format("imagenet_synsets"),
            what="ILSVRC 2012; ascending; n04399382 (teddy, index 850) is not in fall11",
            fingerprint="385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd",
        ),
    )
}
"""Class lists that define the class indices of data sets and models, by name."""

DEVKIT, UNSAFE_PERSONS = "in1k-devkit", "persons-unsafe"

OTHER_LISTS = {
    known.name: known
    for known in (
        KnownList(
            name=DEVKIT,
            num_classes=1_000,
            source="map_clsloc.txt of PatrykChrabaszcz/Imagenet32_Scripts at commit 108b120, MIT",
            what="in1k in the order of ILSVRC2012_ID, 1 to 1,000: the numbers of the development "
            "kit's ground truth; no model is numbered like this",
            fingerprint="930a31901625f2149f8bab016254025ad225daf9efafa3f00011daf6f5f919f9",
        ),
        KnownList(
            name=UNSAFE_PERSONS,
            num_classes=1_593,
            source="image-net.org's annotation as in Bernardo1998/FairGRAPE, "
            "csv/synsets_safety.csv at commit b677eb9, MIT",
            what="classes of people that Yang et al. (FAT* 2020, doi 10.1145/3351095.3375709) "
            "annotated as offensive (437) or sensitive (1,156); for `labels select --drop`",
            fingerprint="c8d6dd0f88e98439a5f1a6c06911cdb4f6bcb34504f577b59091019b549f5656",
        ),
    )
}
"""Lists to read labels or to select classes with; they define no class indices."""

_FILE = Path(__file__).parent / "data" / "class_lists.parquet"


@cache
def known_list(name: str) -> ClassList:
    """Return a list of `KNOWN_LISTS` or `OTHER_LISTS`, with the names of its classes.

    Raises:
        UsageError: There is no list *name*.
        ManifestError: The table of lists was not installed with vit21k, or is damaged.
    """
    wnids = wnids_of(name)
    names = names_of(wnids)
    return ClassList(wnids, tuple(names.get(wnid) for wnid in wnids))


@cache
def wnids_of(name: str) -> tuple[str, ...]:
    """Return the wnids of a known list; errors are those of `known_list`."""
    if not is_known(name):
        raise UsageError(f"no class list is called `{name}`", hint=f"known lists: {_names()}")
    table = _table()
    table = table.select(["wnid", name]).filter(table[name].is_valid()).sort_by(name)
    return tuple(table["wnid"].to_pylist())


def is_known(name: str) -> bool:
    """Return whether *name* is a list of vit21k."""
    return name in KNOWN_LISTS or name in OTHER_LISTS


def _names() -> str:
    return ", ".join([*KNOWN_LISTS, *OTHER_LISTS])


@cache
def _table() -> pa.Table:
    if not _FILE.is_file():
        raise ManifestError(f"no table of class lists at `{_FILE}`", hint="install vit21k again")
    with damage_is_an_error(_FILE):
        return pq.read_table(_FILE, page_checksum_verification=True)


def read_classes(name: str) -> ClassList:
    """Return the class list called *name*: a known list, a file, or a folder of class folders.

    Raises:
        UsageError: It is none of these.
        ManifestError: The file is not a class list.
    """
    if is_known(name):
        return known_list(name)
    path = Path(name)
    if path.is_dir():
        return ClassList.from_folders(class_folders(path))
    if path.is_file():
        return ClassList.read_text(path)
    raise UsageError(
        f"`{name}` is neither a known class list nor a file nor a folder",
        hint=f"known lists: {_names()}; a file has one class folder per line",
    )


def class_folders(root: Path) -> list[str]:
    """Return the names of the class folders, and of the class archives, below *root*.

    They are what is called like a wnid, at any depth; nothing below those is looked at.  If there
    is nothing of that kind, they are the folders that hold files.

    Raises:
        UsageError: There are none.
        LayoutError: The folders that hold files cannot be classes.
    """
    found: set[str] = set()
    with_files: set[str] = set()
    layout = Layout(str(root), inside=_below_split)
    for folder, folders, files in os.walk(root):
        classes = [name for name in folders if _is_wnid(name)]
        found.update(classes)
        found.update(stem for name in files if _is_wnid(stem := name.removesuffix(".tar")))
        folders[:] = [name for name in folders if not _is_wnid(name) and not name.startswith(".")]
        if Path(folder) != root and any(not name.startswith(".") for name in files):
            with_files.add(Path(folder).name)
            layout.add(str(Path(folder).relative_to(root)))
    if not (found or with_files):
        raise UsageError(
            f"`{root}` holds no class folders", hint="expected `n01440764/` and others"
        )
    if not found:
        layout.refuse()
    return sorted(found or with_files)


def _below_split(folder: str) -> str:
    first, _, rest = folder.partition("/")
    return rest if first.lower() in SPLIT_OF else folder


def _is_wnid(name: str) -> bool:
    return len(name) == len("n01440764") and name[0] == "n" and name[1:].isdecimal()


def map_ids(source: ClassList, target: ClassList) -> NDArray[np.int64]:
    """Map class indices of *source* to those of *target*; -1 for missing classes."""
    index_of = {wnid: index for index, wnid in enumerate(target.wnids)}
    return np.array([index_of.get(wnid, -1) for wnid in source.wnids], dtype=np.int64)


def lists_with(wnid: str) -> dict[str, int]:
    """Return the class index of *wnid* in each list of `KNOWN_LISTS` that has it."""
    return {name: wnids.index(wnid) for name in KNOWN_LISTS if wnid in (wnids := wnids_of(name))}


def table_of(lists: Mapping[str, Iterable[str]]) -> pa.Table:
    """Return the table of *lists*: a row for each wnid, its class index in each list or null.

    The metadata say where each list comes from.
    """
    index_of = {name: {w: k for k, w in enumerate(wnids)} for name, wnids in lists.items()}
    wnids = sorted(set().union(*index_of.values()))
    columns = {"wnid": pa.array(wnids)} | {
        name: pa.array([index.get(wnid) for wnid in wnids], pa.int32())
        for name, index in index_of.items()
    }
    known = {**KNOWN_LISTS, **OTHER_LISTS}
    return pa.table(columns).replace_schema_metadata({name: known[name].source for name in lists})


@dataclass(frozen=True, kw_only=True)
class Match:
    """Comparison of a list with a known one.

    Attributes:
        name: The known one.
        num_known: Its length.
        num_common: Classes in both.
        missing: Classes of the known list only, in its order.
        extra: Classes that the known list lacks.
        is_same_order: Whether the common classes are in the same order.
    """

    name: str
    num_known: int
    num_common: int
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    is_same_order: bool

    @property
    def is_equal(self) -> bool:
        """Whether both lists are equal, including class indices."""
        return not self.missing and not self.extra and self.is_same_order

    @property
    def is_part(self) -> bool:
        """Whether the list is a proper subset of the known one."""
        return bool(self.missing) and not self.extra and self.num_common > 0


def identify(classes: ClassList) -> list[Match]:
    """Compare *classes* with every list of `KNOWN_LISTS`; the most similar first.

    Raises:
        ManifestError: The table of lists was not installed with vit21k, or is damaged.
    """
    matches = [_match(name, classes.wnids) for name in KNOWN_LISTS]
    return sorted(matches, key=lambda match: (len(match.missing) + len(match.extra), match.name))


def _match(name: str, wnids: Sequence[str]) -> Match:
    known = wnids_of(name)
    here, there = set(wnids), set(known)
    common = [wnid for wnid in wnids if wnid in there]
    return Match(
        name=name,
        num_known=len(known),
        num_common=len(common),
        missing=tuple(wnid for wnid in known if wnid not in here),
        extra=tuple(wnid for wnid in wnids if wnid not in there),
        is_same_order=common == [wnid for wnid in known if wnid in here],
    )


def wholes(classes: ClassList) -> list[Match]:
    """Return the known lists of which *classes* are a subset, the shortest first."""
    here = set(classes.wnids)
    names = [name for name in KNOWN_LISTS if here < set(wnids_of(name))]
    return sorted((_match(name, classes.wnids) for name in names), key=lambda m: m.num_known)
