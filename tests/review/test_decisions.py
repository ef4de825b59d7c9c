"""The file of decisions: nothing acknowledged is ever lost, nothing half is ever read."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit21k.errors import DataError, LockedError
from vit21k.review.decisions import (
    ACTIONS,
    Action,
    Decision,
    DecisionLog,
    ItemKind,
    in_effect,
    read_decisions,
)

DROP = Decision(action=Action.DROP, kind=ItemKind.MERGE, path="a/1.jpg", wnid="n00000001")
LEAK = Decision(action=Action.ACCEPT, kind=ItemKind.LEAK, path="b/2.jpg", other_path="x.jpg")
OTHER_DROP = Decision(action=Action.DROP, kind=ItemKind.MERGE, path="a/1.jpg", wnid="n00000002")
RIGHT = Decision(action=Action.ACCEPT, kind=ItemKind.MERGE, path="a/1.jpg")
NO_LEAK = Decision(action=Action.REJECT, kind=ItemKind.LEAK, path="b/2.jpg", other_path="x.jpg")
UNDO = Decision(action=Action.UNDO)

WRITER = """
import sys
from pathlib import Path
from vit21k.review.decisions import Action, Decision, DecisionLog, ItemKind
log = DecisionLog(Path(sys.argv[1]))
for number in range(100_000):
    log.add(Decision(action=Action.ACCEPT, kind=ItemKind.MERGE, path=f"{number}.jpg"))
    sys.stdout.write(f"{number}\\n")
    sys.stdout.flush()
"""

decisions_strategy = st.sampled_from(list(ItemKind)).flatmap(
    lambda kind: st.builds(
        Decision,
        action=st.sampled_from(ACTIONS[kind]),
        kind=st.just(kind),
        path=st.text(),
        other_path=st.text(),
        wnid=st.text(),
    )
)


@given(decisions_strategy)
def test_a_line_holds_a_decision_whatever_its_names(decision: Decision) -> None:
    line = decision.to_line()

    assert line.count(b"\n") == 1
    assert Decision.from_line(line) == decision


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b'{"action": "drop"}',
        b'{"action": "undo", "kind": "merge"}',
        b'{"action": "split", "kind": "leak", "path": "a"}',
        b'{"action": "drop", "kind": "merge", "path": 3}',
        b'{"action": "drop", "kind": "merge", "colour": "red"}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_decision_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (one of many)
        Decision.from_line(line)


def test_undo_takes_back_the_last_that_stands() -> None:
    assert in_effect([DROP, LEAK, UNDO]) == [DROP]
    assert in_effect([DROP, UNDO, UNDO, LEAK]) == [LEAK]


@pytest.mark.parametrize(
    ("decisions", "counts"),
    [
        ([LEAK, NO_LEAK], [NO_LEAK]),
        ([LEAK, NO_LEAK, LEAK], [LEAK]),
        ([LEAK, NO_LEAK, UNDO], [LEAK]),
        ([LEAK, LEAK], [LEAK]),
        ([DROP, OTHER_DROP], [DROP, OTHER_DROP]),
        ([DROP, OTHER_DROP, DROP], [OTHER_DROP, DROP]),
        ([DROP, RIGHT], [RIGHT]),
        ([DROP, RIGHT, OTHER_DROP], [OTHER_DROP]),
        ([DROP, RIGHT, UNDO], [DROP]),
        ([DROP, LEAK, RIGHT], [LEAK, RIGHT]),
    ],
)
def test_the_last_decision_on_an_item_counts(
    tmp_path: Path, decisions: list[Decision], counts: list[Decision]
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"".join(decision.to_line() for decision in decisions))
    log = DecisionLog(path)

    assert in_effect(decisions) == counts
    assert log.in_effect == counts
    log.close()


def test_near_duplicates_are_one_item_whichever_comes_first() -> None:
    same = Decision(action=Action.ACCEPT, kind=ItemKind.NEAR, path="a.jpg", other_path="b.jpg")
    other = Decision(action=Action.REJECT, kind=ItemKind.NEAR, path="b.jpg", other_path="a.jpg")

    assert in_effect([same, other]) == [other]


def test_a_decision_that_counts_already_is_not_kept_again(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "d.jsonl")
    for decision in (DROP, DROP, OTHER_DROP, DROP):
        log.add(decision)

    assert read_decisions(tmp_path / "d.jsonl") == [DROP, OTHER_DROP]
    assert log.undo() == OTHER_DROP
    assert log.in_effect == [DROP]
    log.close()


def test_what_was_decided_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "d.jsonl")
    for decision in (DROP, LEAK):
        log.add(decision)
    assert log.undo() == LEAK
    log.close()

    again = DecisionLog(tmp_path / "d.jsonl")

    assert again.in_effect == [DROP]
    assert read_decisions(tmp_path / "d.jsonl") == [DROP, LEAK, UNDO]
    again.close()


def test_undo_with_nothing_left_writes_nothing(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "d.jsonl")

    assert log.undo() is None
    assert (tmp_path / "d.jsonl").read_bytes() == b""
    log.close()


def test_a_last_line_that_was_cut_short_is_ignored_and_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(DROP.to_line() + LEAK.to_line()[:-9])

    assert read_decisions(path) == [DROP]
    log = DecisionLog(path)
    log.add(LEAK)
    log.close()

    assert path.read_bytes() == DROP.to_line() + LEAK.to_line()


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(DROP.to_line() + b"{half\n" + LEAK.to_line())

    with pytest.raises(DataError, match="line 2 of"):
        read_decisions(path)


def test_a_second_process_is_turned_away(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "d.jsonl")

    with pytest.raises(LockedError, match="another `vit21k review`"):
        DecisionLog(tmp_path / "d.jsonl")
    log.close()


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = DecisionLog(tmp_path / "d.jsonl")
    log.add(DROP)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.add(LEAK)

    assert log.in_effect == [DROP]
    log.add(LEAK)
    log.close()
    assert read_decisions(tmp_path / "d.jsonl") == [DROP, LEAK]


def test_without_a_file_it_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_decisions(tmp_path / "d.jsonl")

    assert "vit21k review" in str(caught.value.hint)


@pytest.mark.parametrize("seconds", [0.05, 0.2])
def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path, seconds: float) -> None:
    path = tmp_path / "d.jsonl"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the first is acknowledged
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        acknowledged = 1 + len([line for line in process.stdout if line.endswith("\n")])

    kept = [decision.path for decision in read_decisions(path)]

    assert kept == [f"{number}.jpg" for number in range(len(kept))]
    assert len(kept) in (acknowledged, acknowledged + 1)
    DecisionLog(path).close()  # and it can go on
