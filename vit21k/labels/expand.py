"""Labels -> labels and what they are a kind of: a beagle is a hound, a dog, an animal."""

from dataclasses import dataclass, replace
from pathlib import Path

from vit21k.labels.label_classes import read_label_classes
from vit21k.labels.label_lists import LabelLists, hypernyms, with_hypernyms, without_ancestors
from vit21k.labels.rewrite import RewriteSummary, check_out, relative, rewrite_folder, with_step
from vit21k.lock import locked
from vit21k.manifest.hierarchy import Above, Hierarchy
from vit21k.manifest.reader import open_manifest
from vit21k.manifest.schema import EXPANDED, IMAGES
from vit21k.manifest.writer import manifest_writer
from vit21k.prep.ahead import ahead


@dataclass(frozen=True, kw_only=True)
class ExpandSummary:
    """Counts of an `expanded.parquet`.

    Attributes:
        num_images: Its rows.
        num_labels: Labels of the pictures.
        num_hypernyms: Classes above them, added beside.
        num_without: Pictures that nothing was added to.
    """

    num_images: int
    num_labels: int
    num_hypernyms: int
    num_without: int


def expand(manifests: Path, out: Path, *, levels: int | None = None) -> ExpandSummary:
    """Write `expanded.parquet`: every picture with its labels and, beside, the classes above them.

    Args:
        manifests: The folder of `images.parquet`.
        out: Where the new manifest goes.
        levels: How many steps up, from class to class of the list; default: all.

    Raises:
        ManifestError: `images.parquet` is missing, stale or damaged.
        UsageError: *out* is *manifests*, or lies inside the image root.
        LockedError: Another run works on *out*.
    """
    images = open_manifest(manifests, IMAGES)
    check_out(manifests, out, images.header.root)
    above = _above(Hierarchy.of(images.classes()), levels)
    header = replace(
        with_step(images.header, {"verb": "expand", "levels": levels}),
        inputs={"images": images.fingerprint},
        inputs_in=relative(manifests, out),
    )
    num_labels = num_hypernyms = num_without = 0
    with (
        locked(out, command="labels expand"),
        manifest_writer(EXPANDED, out, header, images.classes()) as writer,
    ):
        for rows in ahead(images.batches(EXPANDED.schema.names[:-1])):
            lists = LabelLists.from_arrow(rows["label_ids"].combine_chunks())
            added = hypernyms(lists, above)
            num_labels += len(lists.label_L)
            num_hypernyms += len(added.label_L)
            num_without += int((added.num_N == 0).sum())
            writer.write(rows.append_column("hypernym_ids", added.to_arrow()))
    return ExpandSummary(
        num_images=images.num_rows,
        num_labels=num_labels,
        num_hypernyms=num_hypernyms,
        num_without=num_without,
    )


def expand_into_labels(manifests: Path, out: Path, *, levels: int | None = None) -> RewriteSummary:
    """Write a new folder whose pictures are labelled by the classes above their labels as well.

    Args and errors are those of `expand`.
    """
    new = read_label_classes(manifests)
    above = _above(Hierarchy.of(new.classes), levels)
    step = {"verb": "expand", "levels": levels, "into_labels": True}
    return rewrite_folder(manifests, out, lambda lists: with_hypernyms(lists, above), new, step)


def reduce(manifests: Path, out: Path) -> RewriteSummary:
    """Write a new folder whose pictures have only labels that no other label of them is a kind of.

    A picture of a dog that lies under "animal" as well keeps "dog".  Args and errors are those of
    `expand`.
    """
    new = read_label_classes(manifests)
    ancestors = Hierarchy.of(new.classes).ancestors
    step = {"verb": "reduce"}
    return rewrite_folder(
        manifests, out, lambda lists: without_ancestors(lists, ancestors), new, step
    )


def _above(hierarchy: Hierarchy, levels: int | None) -> Above:
    return hierarchy.ancestors if levels is None else hierarchy.ancestors_within(levels)
