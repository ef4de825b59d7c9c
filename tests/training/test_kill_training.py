"""Training that is killed: a sample of `kill_training`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch  # noqa: F401 (see conftest.py)

TOOL = Path(__file__).parents[2] / "tools/faults/kill_training.py"


def kill(*arguments):
    done = subprocess.run(
        [sys.executable, TOOL, "--json", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_killed_run_is_bit_identical_to_an_uninterrupted_one():
    found = kill("--kills", "1", "--setups", "ema", "fp16")

    assert all(outcome["differences"] == [] for outcome in found.values())
    assert all(sum(outcome["resumed_from"].values()) == 1 for outcome in found.values())
    assert found["fp16"]["num_skipped"] > 0


@pytest.mark.slow
def test_so_is_one_of_two_processes():
    assert kill("--kills", "2", "--setups", "plain", "two")["two"]["differences"] == []
