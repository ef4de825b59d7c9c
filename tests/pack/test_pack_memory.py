"""The memory of `pack` does not grow with the data set, neither when resuming nor when indexing."""

from pathlib import Path

import bench_pack_index
import pytest

pytestmark = pytest.mark.slow

NUM_ROWS = 800_000


def test_resuming_and_indexing_hold_some_row_groups_and_no_more(tmp_path: Path) -> None:
    steps = bench_pack_index.measure(tmp_path, NUM_ROWS)["steps"]

    assert steps["resume"]["own_mib"] < 220  # 0.3 kB an image more when parts were held
    assert steps["index"]["own_mib"] < 360  # 0.45 kB an image more
