"""`vit21k.labels`: new manifests with other labels, made from old ones that stay as they are."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vit21k.errors import ManifestError, UsageError
from vit21k.labels import edit
from vit21k.labels.conflicts import MANY_LABELS, conflicts
from vit21k.labels.select import (
    Selection,
    expand,
    expand_into_labels,
    reduce,
    select_21k_p,
    select_labels,
)
from vit21k.labels.stats import label_stats, list_facts, write_class_tree
from vit21k.manifest.class_lists import known_list
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import ManifestHeader, open_manifest, read_manifest
from vit21k.manifest.schema import CLASSES, CONFLICTS, EXPANDED, IMAGES, TRAIN, VAL
from vit21k.manifest.wordnet import Relation
from vit21k.manifest.writer import write_manifest
from vit21k.prep.split import make_val

ANIMAL, TENCH, GOLDFISH, DOG, BEAGLE, DOUGHNUT, TARGET = WNIDS = (
    *("n00015388", "n01440764", "n01443537", "n02084071", "n02088364"),
    *("n07639069", "n04394261"),
)
LABELS: tuple[tuple[str, ...], ...] = (
    *((ANIMAL, BEAGLE), (ANIMAL, DOG), (ANIMAL,), (TENCH, GOLDFISH), (TENCH,)),
    *((DOG, BEAGLE), (DOG,), (BEAGLE,), (TARGET, DOUGHNUT), (TARGET,), (DOUGHNUT,)),
)


def write_folder(
    folder: Path, labels: Sequence[Sequence[str]], wnids: Sequence[str] = WNIDS
) -> Path:
    """Write images and classes of images with these labels; return the folder."""
    classes = ClassList.from_folders(wnids)
    index_of = {wnid: index for index, wnid in enumerate(classes.wnids)}
    label_ids = sorted(sorted(index_of[wnid] for wnid in row) for row in labels)
    digests = [number.to_bytes(16, "little") for number in range(len(label_ids))]
    paths = [f"{classes.wnids[row[0]]}/{n}.JPEG" for n, row in enumerate(label_ids)]
    rows = {"digest": digests, "path": paths, "label_ids": label_ids}
    rows |= {"num_files": [len(row) for row in label_ids]}
    header = ManifestHeader(algorithm="md5", root="/data", classes=classes.fingerprint)
    write_manifest(pa.table(_typed(rows, IMAGES.schema)), IMAGES, folder, header, classes)
    flat = np.concatenate([np.array(row) for row in label_ids])
    counts = np.bincount(flat, minlength=len(classes))
    class_rows = {
        "class_index": range(len(classes)),
        "wnid": classes.wnids,
        "name": [None] * len(classes),
        **dict.fromkeys(("num_files", "num_images", "num_single_label"), counts),
    }
    write_manifest(pa.table(_typed(class_rows, CLASSES.schema)), CLASSES, folder, header)
    return folder


def _typed(rows: Mapping[str, object], schema: pa.Schema) -> dict[str, pa.Array]:
    return {name: pa.array(values, schema.field(name).type) for name, values in rows.items()}


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "m", LABELS)


def _wnids_by_path(folder: Path, column: str = "label_ids") -> dict[str, tuple[str, ...]]:
    kind = EXPANDED if column == "hypernym_ids" else IMAGES
    manifest = open_manifest(folder, kind)
    wnids = manifest.classes().wnids
    rows = manifest.read(["path", column]).to_pylist()
    return {row["path"]: tuple(wnids[i] for i in row[column]) for row in rows}


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_reduce_drops_the_hypernyms_of_another_label(manifests: Path) -> None:
    before = _bytes(manifests)
    out = manifests / "labels" / "reduce"

    summary = reduce(manifests, out)

    old, new = _wnids_by_path(manifests), _wnids_by_path(out)
    assert {old[path]: new[path] for path in old if old[path] != new[path]} == {
        (ANIMAL, BEAGLE): (BEAGLE,),
        (ANIMAL, DOG): (DOG,),
        (DOG, BEAGLE): (BEAGLE,),
    }
    assert (summary.num_images, summary.num_changed, summary.num_skipped) == (11, 3, 0)
    assert (summary.num_labels_before, summary.num_labels) == (16, 13)
    assert _bytes(manifests) == before


def test_images_stay_ordered_by_first_label_whatever_is_held(
    manifests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reduce(manifests, manifests / "whole")
    monkeypatch.setattr(edit, "ROWS_IN_MEMORY", 2)
    reduce(manifests, manifests / "pieces")

    rows = read_manifest(manifests / "whole", IMAGES, ["label_ids"])["label_ids"].to_pylist()
    assert rows == sorted(rows, key=lambda row: row[0])
    assert _bytes(manifests / "whole") == _bytes(manifests / "pieces")


def test_the_new_classes_are_counted_anew(manifests: Path) -> None:
    reduce(manifests, manifests / "out")

    rows = read_manifest(manifests / "out", CLASSES).to_pylist()
    labels = list(_wnids_by_path(manifests / "out").values())
    for row in rows:
        assert row["num_images"] == sum(row["wnid"] in wnids for wnids in labels)
        assert row["num_single_label"] == sum((row["wnid"],) == wnids for wnids in labels)


def test_every_step_is_in_the_header_and_what_it_was_made_from(manifests: Path) -> None:
    reduce(manifests, manifests / "a")
    select_labels(manifests / "a", manifests / "b", Selection(drop=[DOG]))

    header = open_manifest(manifests / "b", IMAGES).header
    assert [step["verb"] for step in header.options["labels"]] == ["reduce", "select"]
    assert header.options["labels"][1]["drop"] == [DOG]
    assert header.inputs == {"images": open_manifest(manifests / "a", IMAGES).fingerprint}
    assert header.inputs_in == "../a"


def test_new_manifests_are_stale_when_the_old_ones_change(manifests: Path) -> None:
    make_val(manifests, per_class=1)
    reduce(manifests, manifests / "out")
    open_manifest(manifests / "out", TRAIN)

    write_folder(manifests, LABELS[:-1])

    for kind in (IMAGES, CLASSES, VAL, TRAIN):
        with pytest.raises(ManifestError, match=r"stale: `.*/m/images.parquet` has changed"):
            open_manifest(manifests / "out", kind)
    with pytest.raises(ManifestError) as caught:
        open_manifest(manifests / "out", IMAGES)
    assert caught.value.hint == "make it again with `vit21k labels reduce`"


def test_new_manifests_can_be_moved_with_the_old_ones_or_away(
    manifests: Path, tmp_path: Path
) -> None:
    reduce(manifests, manifests / "labels" / "reduce")
    manifests.rename(tmp_path / "moved")
    open_manifest(tmp_path / "moved" / "labels" / "reduce", IMAGES)

    (tmp_path / "moved" / "labels" / "reduce").rename(tmp_path / "away")
    open_manifest(tmp_path / "away", IMAGES)


def test_a_split_is_carried_over_and_can_be_made_anew(manifests: Path) -> None:
    make_val(manifests, per_class=1, holdout=True)

    summary = reduce(manifests, manifests / "out")

    old = set(read_manifest(manifests, VAL, ["path"])["path"].to_pylist())
    assert set(read_manifest(manifests / "out", VAL, ["path"])["path"].to_pylist()) == old
    assert summary.splits == {"val": 6, "train": 5}
    assert open_manifest(manifests / "out", VAL).header.options["split"] == "holdout"
    make_val(manifests / "out", per_class=2)
    header = open_manifest(manifests / "out", TRAIN).header
    assert (header.options["labels"][0]["verb"], header.inputs_in) == ("reduce", ".")


def test_a_split_that_no_longer_fits_is_skipped_with_a_warning(manifests: Path) -> None:
    make_val(manifests, per_class=1)
    write_folder(manifests, LABELS[:-1])

    assert reduce(manifests, manifests / "out").stale_split
    assert not (manifests / "out" / VAL.file_name).exists()


def test_a_run_that_dies_half_way_leaves_nothing_that_looks_whole(
    manifests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_val(manifests, per_class=1)
    reduce(manifests, manifests / "out")

    def die(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(edit, "write_classes", die)
    with pytest.raises(KeyboardInterrupt):
        select_labels(manifests, manifests / "out", Selection(drop=[TENCH]))

    for kind in (CLASSES, VAL, TRAIN):
        with pytest.raises(ManifestError, match=r"stale: `images.parquet` has changed"):
            open_manifest(manifests / "out", kind)


def test_the_old_folder_and_the_image_tree_are_never_written_to(
    manifests: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="must not replace"):
        reduce(manifests, manifests)
    header = ManifestHeader(algorithm="md5", root=str(tmp_path))
    rows = read_manifest(manifests, IMAGES)
    write_manifest(rows, IMAGES, tmp_path / "x", header, ClassList.from_folders(WNIDS))
    with pytest.raises(UsageError, match="inside the image root"):
        expand(tmp_path / "x", tmp_path / "y")


def test_expand_adds_what_is_above_in_a_column_of_its_own(manifests: Path) -> None:
    summary = expand(manifests, manifests / "out")

    added = _wnids_by_path(manifests / "out", "hypernym_ids")
    labels = _wnids_by_path(manifests)
    assert {labels[path]: wnids for path, wnids in added.items()} == {
        (ANIMAL,): (),
        (ANIMAL, DOG): (),
        (ANIMAL, BEAGLE): (DOG,),
        (TENCH,): (ANIMAL,),
        (TENCH, GOLDFISH): (ANIMAL,),
        (DOG,): (ANIMAL,),
        (DOG, BEAGLE): (ANIMAL,),
        (BEAGLE,): (ANIMAL, DOG),
        **dict.fromkeys([(TARGET,), (DOUGHNUT,), (TARGET, DOUGHNUT)], ()),
    }
    assert (summary.num_images, summary.num_labels, summary.num_hypernyms) == (11, 16, 7)
    assert summary.num_without == 5
    rows = read_manifest(manifests / "out", EXPANDED)
    assert rows["label_ids"].equals(read_manifest(manifests, IMAGES)["label_ids"])


def test_expand_goes_up_as_many_levels_as_asked(manifests: Path) -> None:
    expand(manifests, manifests / "out", levels=1)

    added = _wnids_by_path(manifests / "out", "hypernym_ids")
    assert [wnids for path, wnids in added.items() if path.startswith(BEAGLE)] == [(DOG,)]


def test_expand_into_labels_gives_manifests_to_train_on(manifests: Path) -> None:
    summary = expand_into_labels(manifests, manifests / "out")

    labels = _wnids_by_path(manifests / "out")
    assert [wnids for path, wnids in labels.items() if path.startswith(BEAGLE)] == [
        (ANIMAL, DOG, BEAGLE)
    ]
    assert (summary.num_labels_before, summary.num_labels) == (16, 23)
    reduced = reduce(manifests / "out", manifests / "back")
    assert reduced.num_labels == reduce(manifests, manifests / "direct").num_labels


def test_hugging_face_reads_both_columns_as_class_labels(manifests: Path) -> None:
    # before, columns of binary values of fixed size are refused
    datasets = pytest.importorskip("datasets", minversion="5.1")
    expand(manifests, manifests / "out")

    file = str(manifests / "out" / EXPANDED.file_name)
    rows = datasets.load_dataset(
        "parquet", data_files=file, split="train", cache_dir=str(manifests / "cache")
    )

    for column in ("label_ids", "hypernym_ids"):
        assert rows.features[column].feature.names == sorted(WNIDS)


def test_a_subtree_can_be_dropped_and_indices_are_given_anew(manifests: Path) -> None:
    summary = select_labels(manifests, manifests / "out", Selection(drop=[ANIMAL]))

    assert open_manifest(manifests / "out", IMAGES).classes().wnids == (TARGET, DOUGHNUT)
    assert summary.rewritten.num_skipped == 8
    assert set(_wnids_by_path(manifests / "out").values()) == {
        *((TARGET,), (DOUGHNUT,), (TARGET, DOUGHNUT))
    }


def test_a_subtree_can_be_kept_with_its_indices(manifests: Path) -> None:
    select_labels(manifests, manifests / "out", Selection(keep=[DOG], keep_indices=True))

    new, old = (open_manifest(folder, IMAGES) for folder in (manifests / "out", manifests))
    assert new.classes().fingerprint == old.classes().fingerprint
    assert {label for row in new.read()["label_ids"].to_pylist() for label in row} == {3, 4}


def test_keeping_a_list_gives_the_indices_of_that_list(manifests: Path) -> None:
    summary = select_labels(manifests, manifests / "out", Selection(keep=["in1k"]))

    new = open_manifest(manifests / "out", IMAGES)
    assert new.header.classes == known_list("in1k").fingerprint
    assert summary.rewritten.num_classes == 1000
    assert len(summary.lost) == 1000 - 3
    assert "n04399382" in summary.lost
    tench = [row for row in new.read().to_pylist() if row["path"].startswith(TENCH)]
    assert [row["label_ids"] for row in tench] == [[0], [0, 1]]


def test_classes_of_people_that_are_unsafe_can_be_dropped(tmp_path: Path) -> None:
    safe, unsafe = "n10763383", known_list("persons-unsafe").wnids[0]
    manifests = write_folder(tmp_path / "m", [(DOG,), (safe,), (unsafe,)], (DOG, safe, unsafe))

    summary = select_labels(manifests, manifests / "out", Selection(drop=["persons-unsafe"]))

    assert summary.gone == (unsafe,)
    assert open_manifest(manifests / "out", IMAGES).classes().wnids == (DOG, safe)


def test_a_list_and_more_gives_the_classes_that_fit_all(manifests: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{TENCH}\n{DOG}\n{BEAGLE}\n")
    keep = [str(tmp_path / "list.txt"), DOUGHNUT]

    select_labels(manifests, manifests / "out", Selection(keep=keep, drop=[BEAGLE]))

    assert open_manifest(manifests / "out", IMAGES).classes().wnids == (TENCH, DOG, DOUGHNUT)


@pytest.mark.parametrize(
    "selection", [Selection(more_than=99), Selection(keep=[DOG], drop=[ANIMAL])]
)
def test_a_selection_that_leaves_nothing_is_refused(manifests: Path, selection: Selection) -> None:
    with pytest.raises(UsageError, match="no class is left"):
        select_labels(manifests, manifests / "out", selection)


def test_what_is_no_class_and_no_list_is_refused(manifests: Path) -> None:
    with pytest.raises(UsageError, match="neither a known class list"):
        select_labels(manifests, manifests / "out", Selection(keep=["n99999999"]))


def test_the_21k_p_preset_takes_classes_of_more_than_500_and_holds_50_out(tmp_path: Path) -> None:
    labels = [(TENCH,)] * 501 + [(GOLDFISH,)] * 500 + [(TENCH, TARGET)] * 3 + [(DOG,)] * 600
    manifests = write_folder(tmp_path / "m", labels)

    summary = select_21k_p(manifests, tmp_path / "p")

    val, train = (open_manifest(tmp_path / "p", kind) for kind in (VAL, TRAIN))
    assert train.classes().wnids == (TENCH, DOG)  # 504 and 600; not 500, not 3
    assert (val.num_rows, train.num_rows) == (100, 1_004)
    assert summary.rewritten.num_skipped == 500
    assert np.bincount(
        val.read(["label_ids"])["label_ids"].combine_chunks().flatten()
    ).tolist() == [*(50, 50)]
    both = {row for kind in (val, train) for row in kind.read(["path"])["path"].to_pylist()}
    assert len(both) == 1_104  # no image in both
    assert val.header.options["split"] == "holdout"


def test_what_is_counted_may_be_images(tmp_path: Path) -> None:
    manifests = write_folder(tmp_path / "m", [(TENCH,)] * 3 + [(DOG,)] * 5)

    select_labels(manifests, tmp_path / "out", Selection(more_than=4, count="images"))

    assert open_manifest(tmp_path / "out", IMAGES).classes().wnids == (DOG,)


def test_conflicts_are_ranked_and_say_what_the_labels_have_in_common(manifests: Path) -> None:
    summary = conflicts(manifests, manifests / "out")

    rows = read_manifest(manifests / "out", CONFLICTS).to_pylist()
    names = sorted(WNIDS)
    assert [
        (row["relation"], names[row["first_id"]], names[row["second_id"]], row["common_wnid"])
        for row in rows
    ] == [
        ("far", TARGET, DOUGHNUT, "n00001930"),  # physical entity
        ("siblings", TENCH, GOLDFISH, "n01439121"),  # cyprinid
        ("ancestor", ANIMAL, BEAGLE, ANIMAL),
        ("ancestor", ANIMAL, DOG, ANIMAL),
        ("ancestor", DOG, BEAGLE, DOG),
    ]
    assert summary.num_multi_label == sum(summary.relations.values()) == 5
    assert summary.relations[Relation.ANCESTOR] == 3


def test_of_three_labels_the_two_that_fit_least_count(tmp_path: Path) -> None:
    manifests = write_folder(tmp_path / "m", [(TENCH, GOLDFISH, TARGET), (DOG,)])

    conflicts(manifests, tmp_path / "out")

    (row,) = read_manifest(tmp_path / "out", CONFLICTS).to_pylist()
    assert (row["relation"], len(row["label_ids"])) == ("far", 3)


def test_an_overlabelled_image_is_ranked_too(tmp_path: Path) -> None:
    wnids = known_list("in1k").wnids[:: 1000 // (MANY_LABELS + 10)]
    manifests = write_folder(tmp_path / "m", [wnids], [*wnids, DOG])

    assert conflicts(manifests, tmp_path / "out").relations[Relation.FAR] == 1


def test_a_manifest_without_conflicts_gives_an_empty_one(tmp_path: Path) -> None:
    manifests = write_folder(tmp_path / "m", [(TENCH,)])

    assert conflicts(manifests, tmp_path / "out").num_multi_label == 0
    assert open_manifest(tmp_path / "out", CONFLICTS).num_rows == 0


def test_folders_that_are_no_wnids_relate_in_no_known_way(tmp_path: Path) -> None:
    manifests = write_folder(tmp_path / "m", [("cat", "dog"), ("cat",)], ("cat", "dog"))

    summary = conflicts(manifests, tmp_path / "out")
    select_labels(manifests, tmp_path / "s", Selection(keep=["cat"]))

    assert summary.relations[Relation.UNKNOWN] == 1
    assert reduce(manifests, tmp_path / "r").num_changed == 0
    assert open_manifest(tmp_path / "s", IMAGES).classes().wnids == ("cat",)


def test_the_facts_of_fall11_are_those_that_were_counted_elsewhere() -> None:
    facts = list_facts(known_list("fall11"))

    assert facts["is"] == "fall11"
    assert (facts["num_leaves"], facts["num_inner"]) == (17_253, 4_588)
    assert facts["num_with_several_parents_in_wordnet"] == 453
    assert facts["num_with_ancestors_in_list"] == 21_374
    assert (facts["mean_ancestors_in_list"], facts["max_ancestors_in_list"]) == (4.66, 15)
    assert facts["num_distinct_first_names"] == 20_068
    assert facts["num_people"] == 2_836
    assert facts["num_of_in1k"] == 999
    assert facts["num_of_in1k_with_others_below"] == 337
    assert facts["num_below_one_of_in1k"] == 1_245
    assert facts["has_teddy"] is False


def test_stats_count_labels_and_what_expanding_and_reducing_would_do(manifests: Path) -> None:
    stats = label_stats(manifests)

    assert stats["images_by_number_of_labels"] == {1: 6, 2: 5}
    assert (stats["num_images"], stats["num_labels"]) == (11, 16)
    assert stats["num_labels_above_another"] == 3
    assert stats["mean_labels_with_hypernyms"] == round(23 / 11, 3)
    assert stats["num_classes_with_more_images_than"][0] == 7


def test_the_tree_has_a_line_up_for_each_class(tmp_path: Path) -> None:
    write_class_tree(ClassList.from_folders(WNIDS), tmp_path / "tree.json")

    tree = json.loads((tmp_path / "tree.json").read_text())
    index = {wnid: place for place, wnid in enumerate(tree["class_list"])}
    assert tree["class_tree_list"][index[BEAGLE]] == [index[BEAGLE], index[DOG], index[ANIMAL]]
    assert tree["level"][index[TARGET]] == 0
    assert tree["ancestors"][index[TENCH]] == tree["parents"][index[TENCH]] == [index[ANIMAL]]
    assert tree["class_description"][index[TENCH]] == "tench, Tinca tinca"
    assert tree["fingerprint"] == ClassList.from_folders(WNIDS).fingerprint
