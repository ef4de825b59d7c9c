"""Commands that are killed, or whose disk fails or fills up: a sample of `fault_report`."""

from pathlib import Path

import fault_report
import pytest
from fault_stages import checkpoint_stage, command_stages
from faults import (
    CALLS,
    EFFECTS,
    References,
    Stage,
    has_strace,
    inject,
    kill_at_random,
    run_undisturbed,
)

COMMANDS = ["hash", "relabel", "make-val", "export-lists", "import-md5sum", "checkpoint"]
NUM_KILLS = 6
WHICH_CALLS = (1, 3)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def stages(home: Path) -> dict[str, Stage]:
    found = command_stages(home)
    try:
        import torch  # noqa: F401, PLC0415
    except ImportError:
        return found
    return found | {"checkpoint": checkpoint_stage(home)}


@pytest.fixture(scope="module")
def references(stages: dict[str, Stage], home: Path) -> dict[str, References]:
    return {name: run_undisturbed(stage, home / "work") for name, stage in stages.items()}


def _stage(stages: dict[str, Stage], name: str) -> Stage:
    if name not in stages:
        pytest.skip("torch is not installed")
    return stages[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_at_a_random_moment_leaves_old_or_new_files_and_the_next_run_is_as_ever(
    stages: dict[str, Stage], references: dict[str, References], home: Path, name: str
) -> None:
    stage = _stage(stages, name)

    tally = kill_at_random(stage, home / "work", times=NUM_KILLS, references=references[name])

    assert tally.failures == []
    assert tally.num_faults == NUM_KILLS


@pytest.mark.skipif(not has_strace(), reason="strace is missing, or may not trace")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_call_that_fails_is_said_and_leaves_old_or_new_files(
    stages: dict[str, Stage],
    references: dict[str, References],
    home: Path,
    name: str,
    call: str,
) -> None:
    stage = _stage(stages, name)
    first = COMMANDS.index(name) + list(CALLS).index(call)  # which effect comes first
    num_injected = 0
    for place, number in enumerate(WHICH_CALLS):
        effect = list(EFFECTS)[(first + place) % len(EFFECTS)]
        tally = inject(stage, home / "work", call, effect, number, references[name])
        if tally is not None:
            num_injected += 1
            assert tally.failures == []

    assert num_injected


@pytest.mark.parametrize("name", COMMANDS)
def test_a_limit_on_the_size_of_files_is_said_and_leaves_old_or_new_files(
    stages: dict[str, Stage], home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fault_report, "_LIMITS", (100, 2_000))

    assert fault_report.limit_files(_stage(stages, name), home / "work").failures == []


def test_no_flipped_bit_of_what_the_commands_wrote_passes(
    stages: dict[str, Stage], home: Path
) -> None:
    tallies = fault_report.flips(stages, home / "work", 25)

    assert {"digests", "problems", "images", "copies", "classes", "train", "val"} <= set(tallies)
    assert [text for tally in tallies.values() for text in tally.failures] == []
