"""Mapped rows cost a process next to nothing, however many there are; a list of them does not."""

from pathlib import Path

import bench_rows
import pytest

pytestmark = pytest.mark.slow

NUM_ROWS = 400_000


def test_a_shuffled_epoch_of_mapped_rows_takes_little_memory_of_a_process(tmp_path: Path) -> None:
    bench_rows.make(tmp_path, NUM_ROWS)
    bench_rows.index_seconds(tmp_path)

    mapped = bench_rows.run("mapped", tmp_path, NUM_ROWS)
    listed = bench_rows.run("list", tmp_path, NUM_ROWS)

    assert mapped["seconds"] < 0.5
    assert mapped["epoch_mib"] < 20
    assert mapped["worker_mib"] < 20
    assert min(listed["epoch_mib"], listed["worker_mib"]) > 40
