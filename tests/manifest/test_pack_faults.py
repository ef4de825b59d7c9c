"""`vit21k pack`, killed or with a failing disk: the next run resumes, to the same bytes."""

import ctypes
import os
import sys
from pathlib import Path

import pytest
from faults import References, Stage, has_strace, inject, kill_at_random, run_undisturbed
from packable import write_manifests, write_tree

import vit21k.pack.build  # noqa: F401  (so that a fork has it)
from vit21k.cli.app import main
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import KINDS

NUM_KILLS = 8

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pack-faults")


@pytest.fixture(scope="module")
def stage(home: Path, native_extension: ctypes.CDLL) -> Stage:
    manifests = write_manifests(write_tree(home / "tree"), home / "m")
    (home / "before").mkdir()

    def run() -> int:
        options = ["--lossless", "--per-shard", "4", "--num-workers", "2"]
        sys.argv = ["vit21k", "pack", *options, "--manifests", str(manifests), "--out", "p"]
        main()
        return 0

    return Stage("pack", home / "before", run, _read_manifests)


def _read_manifests() -> None:
    for path in Path("p").glob("*.parquet"):
        open_manifest(path, KINDS[path.stem]).read()


@pytest.fixture(scope="module")
def references(stage: Stage, home: Path) -> References:
    return run_undisturbed(stage, home / "work")


def test_a_kill_at_a_random_moment_costs_only_what_was_not_finished(
    stage: Stage, references: References, home: Path
) -> None:
    tally = kill_at_random(stage, home / "work", times=NUM_KILLS, references=references)

    assert tally.failures == []
    assert tally.codes[-9]


@pytest.mark.skipif(not has_strace(), reason="no strace, or it may not trace")
@pytest.mark.parametrize(
    ("call", "effect", "number"),
    [("write", "ENOSPC", 9), ("fsync", "EIO", 3), ("rename", "kill", 4), ("rename", "EIO", 2)],
)
def test_a_failing_disk_is_reported_and_the_next_run_resumes(
    stage: Stage, references: References, home: Path, call: str, effect: str, number: int
) -> None:
    tally = inject(stage, home / "work", call, effect, number, references)

    assert tally is not None
    assert tally.failures == []


def test_the_reference_is_a_whole_pack(references: References) -> None:
    assert sum(name.endswith(".tar") for name in references.new) == 6
    assert os.path.join("p", "packed.parquet") in references.new  # noqa: PTH118
