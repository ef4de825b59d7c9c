"""Decisions become new manifests; the old ones stay, and what no longer fits is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from review_world import BANANA, BEAGLE, DOG, make_world

from vit21k.errors import DataError, UsageError
from vit21k.manifest.io import open_manifest, read_manifest
from vit21k.manifest.schema import CHANGES, CLASSES, IMAGES
from vit21k.prep.split import make_val
from vit21k.review.apply import NO_SPLIT, ApplySummary, apply_decisions
from vit21k.review.decisions import Action, Decision, ItemKind

FAR, DOG_IS_BEAGLE = f"{BEAGLE}/1.jpg", f"{DOG}/0.jpg"
NEAR, NEAR_OTHER = f"{DOG}/2_again.jpg", f"{BANANA}/2.jpg"
LEAK = f"{DOG}/3.jpg"
WNIDS = [DOG, BEAGLE, BANANA]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("apply"))


def merge(action: Action, path: str, **fields: str) -> Decision:
    return Decision(action=action, kind=ItemKind.MERGE, path=path, **fields)


def digest_of(manifests: Path, path: str) -> str:
    rows = read_manifest(manifests, IMAGES)
    (row,) = rows.filter(pc.equal(rows["path"], path)).to_pylist()
    return str(row["digest"].hex())


def applied(
    manifests: Path, out: Path, *decisions: Decision
) -> tuple[ApplySummary, dict[str, Any]]:
    """Apply *decisions*; return the labels of each new image, by path."""
    path = out.parent / "d.jsonl"
    path.write_bytes(b"".join(decision.to_line() for decision in decisions))
    summary = apply_decisions(manifests, path, out)
    rows = read_manifest(out, IMAGES).to_pylist()
    return summary, {row["path"]: [WNIDS[i] for i in row["label_ids"]] for row in rows}


def test_a_dropped_label_goes_and_all_else_stays(manifests: Path, tmp_path: Path) -> None:
    before = (manifests / IMAGES.file_name).read_bytes()

    summary, labels = applied(manifests, tmp_path / "out", merge(Action.DROP, FAR, wnid=BEAGLE))

    assert labels[FAR] == [BANANA]
    assert labels[DOG_IS_BEAGLE] == [DOG, BEAGLE]
    assert (summary.num_before, summary.num_images, summary.num_changed) == (5, 5, 1)
    assert (manifests / IMAGES.file_name).read_bytes() == before


def test_the_new_manifest_is_in_order_and_counts_its_classes(
    manifests: Path, tmp_path: Path
) -> None:
    applied(manifests, tmp_path / "out", merge(Action.DROP, DOG_IS_BEAGLE, wnid=DOG))

    first = [
        labels[0] for labels in read_manifest(tmp_path / "out", IMAGES)["label_ids"].to_pylist()
    ]
    classes = read_manifest(tmp_path / "out", CLASSES)
    assert first == sorted(first)
    assert classes["num_images"].to_pylist() == [2, 2, 2]
    assert classes["num_single_label"].to_pylist() == [2, 1, 1]


def test_a_merge_is_never_split_as_a_row_is_one_digest(manifests: Path, tmp_path: Path) -> None:
    line = {"kind": "merge", "action": "split", "path": FAR, "digest": digest_of(manifests, FAR)}
    split = Decision.from_line(json.dumps(line).encode())

    summary, labels = applied(manifests, tmp_path / "out", split)

    assert summary.not_applied == [(FAR, NO_SPLIT)]
    assert labels[FAR] == [BEAGLE, BANANA]
    assert (summary.num_images, summary.num_changed) == (5, 0)


def test_the_last_decision_on_an_item_counts(manifests: Path, tmp_path: Path) -> None:
    leak = {"kind": ItemKind.LEAK, "path": LEAK, "other_path": "3.jpg"}
    decisions = [
        Decision(action=Action.ACCEPT, **leak),
        Decision(action=Action.REJECT, **leak),
        merge(Action.DROP, FAR, wnid=BEAGLE),
        merge(Action.ACCEPT, FAR),
    ]

    summary, labels = applied(manifests, tmp_path / "out", *decisions)

    assert labels[LEAK] == [DOG]
    assert labels[FAR] == [BEAGLE, BANANA]
    assert (summary.num_decisions, summary.num_confirmed, summary.num_applied) == (2, 2, 0)


def test_a_near_duplicate_becomes_one_image_with_the_labels_of_both(
    manifests: Path, tmp_path: Path
) -> None:
    same = Decision(action=Action.ACCEPT, kind=ItemKind.NEAR, path=NEAR, other_path=NEAR_OTHER)

    summary, labels = applied(manifests, tmp_path / "out", same)

    assert labels[NEAR] == [DOG, BANANA]
    assert NEAR_OTHER not in labels
    assert (summary.num_images, summary.num_changed) == (4, 2)


def test_a_leak_is_skipped(manifests: Path, tmp_path: Path) -> None:
    leak = Decision(action=Action.ACCEPT, kind=ItemKind.LEAK, path=LEAK, other_path="3.jpg")

    summary, labels = applied(manifests, tmp_path / "out", leak)

    assert LEAK not in labels
    assert summary.num_images == 4


def test_what_confirms_and_what_was_undone_changes_nothing(manifests: Path, tmp_path: Path) -> None:
    summary, _ = applied(
        manifests,
        tmp_path / "out",
        merge(Action.ACCEPT, FAR),
        Decision(action=Action.REJECT, kind=ItemKind.NEAR, path=NEAR, other_path=NEAR_OTHER),
        merge(Action.DROP, FAR, wnid=BEAGLE),
        Decision(action=Action.UNDO),
    )

    assert (summary.num_decisions, summary.num_confirmed, summary.num_applied) == (2, 2, 0)
    assert read_manifest(tmp_path / "out", IMAGES).equals(read_manifest(manifests, IMAGES))


def test_an_image_without_labels_is_skipped(manifests: Path, tmp_path: Path) -> None:
    both = [merge(Action.DROP, FAR, wnid=wnid) for wnid in (BEAGLE, BANANA)]

    summary, labels = applied(manifests, tmp_path / "out", *both)

    assert summary.unlabelled == [FAR]
    (change,) = read_manifest(tmp_path / "out", CHANGES).to_pylist()
    assert FAR not in labels
    assert (change["action"], change["before"], change["after"]) == ("remove", [1, 2], [])


def test_several_decisions_on_one_image_work_together(manifests: Path, tmp_path: Path) -> None:
    _, labels = applied(
        manifests,
        tmp_path / "out",
        Decision(action=Action.ACCEPT, kind=ItemKind.NEAR, path=NEAR, other_path=NEAR_OTHER),
        merge(Action.DROP, NEAR_OTHER, wnid=DOG),
        merge(Action.DROP, FAR, wnid=BANANA),
    )

    assert labels[NEAR] == [BANANA]  # what the other became a part of
    assert labels[FAR] == [BEAGLE]


@pytest.mark.parametrize("is_drop_first", [True, False])
def test_a_leak_is_removed_whatever_else_was_decided_on_it(
    manifests: Path, tmp_path: Path, is_drop_first: bool
) -> None:
    decisions = [
        merge(Action.DROP, LEAK, wnid=DOG),
        Decision(action=Action.ACCEPT, kind=ItemKind.LEAK, path=LEAK, other_path="3.jpg"),
    ]

    summary, labels = applied(
        manifests, tmp_path / "out", *(decisions if is_drop_first else decisions[::-1])
    )

    assert LEAK not in labels
    assert (summary.num_applied, summary.not_applied, summary.unlabelled) == (2, [], [])


@pytest.mark.parametrize(
    ("decision", "problem"),
    [
        (merge(Action.DROP, "gone.jpg", wnid=DOG), "the image is not in the manifest"),
        (merge(Action.DROP, FAR, wnid=DOG), f"it is not labelled {DOG}"),
        (merge(Action.DROP, FAR, wnid="n0"), "it is not labelled n0"),
        (merge(Action.DROP, FAR, wnid=BEAGLE, digest="00" * 16), "the image has changed"),
        (
            Decision(action=Action.ACCEPT, kind=ItemKind.NEAR, path=NEAR, other_path="gone.jpg"),
            "the other image is not in the manifest",
        ),
    ],
)
def test_what_no_longer_fits_is_named_and_not_applied(
    manifests: Path, tmp_path: Path, decision: Decision, problem: str
) -> None:
    summary, _ = applied(manifests, tmp_path / "out", decision)

    assert summary.not_applied == [(decision.path, problem)]
    assert read_manifest(tmp_path / "out", IMAGES).equals(read_manifest(manifests, IMAGES))


def test_the_header_names_the_decisions_and_goes_stale_with_the_old_manifest(
    manifests: Path, tmp_path: Path
) -> None:
    old = tmp_path / "m"
    shutil.copytree(manifests, old)

    applied(old, tmp_path / "out", merge(Action.DROP, FAR, wnid=BEAGLE))

    header = open_manifest(tmp_path / "out", IMAGES).header
    (step,) = header.options["labels"]
    assert step["verb"] == "apply"
    assert len(step["decisions"]) == 64
    assert header.inputs == {"images": open_manifest(old, IMAGES).fingerprint}


def test_the_same_decisions_give_the_same_bytes(manifests: Path, tmp_path: Path) -> None:
    decision = merge(Action.DROP, FAR, wnid=BEAGLE)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        applied(manifests, tmp_path / name / "out", decision)

    for kind in (IMAGES, CLASSES, CHANGES):
        one, two = (tmp_path / name / "out" / kind.file_name for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_the_new_manifests_are_input_of_make_val(manifests: Path, tmp_path: Path) -> None:
    applied(manifests, tmp_path / "out", merge(Action.DROP, FAR, wnid=BEAGLE))

    summary = make_val(tmp_path / "out", per_class=1)

    assert summary.num_train == 5


def test_the_old_manifests_are_never_replaced(manifests: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"")

    with pytest.raises(UsageError, match="must not replace"):
        apply_decisions(manifests, path, manifests)
    with pytest.raises(DataError, match="no decisions"):
        apply_decisions(manifests, tmp_path / "gone.jsonl", tmp_path / "out")
