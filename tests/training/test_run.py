"""What `train_run` does around the parts that have tests of their own."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from vit21k.distributed import World
from vit21k.errors import UsageError
from vit21k.recipe.load import load_recipe
from vit21k.training import run
from vit21k.training.context import NOBODY, Place


@pytest.mark.parametrize(("rank", "heard"), [(0, ["mind"]), (1, [])])
def test_of_several_processes_one_warns(tmp_path, monkeypatch, rank, heard):
    def objective_of(*_, warn):
        warn("mind")
        raise UsageError("enough seen")

    monkeypatch.setattr(run, "init_world", lambda _device: World(rank=rank))
    monkeypatch.setattr(run, "open_split_data", lambda *_: SimpleNamespace(classes=("a", "b")))
    monkeypatch.setattr(run.loss_parts, "objective_of", objective_of)
    place = Place(
        manifests=tmp_path,
        root=None,
        run_dir=tmp_path / "run",
        device="cpu",
        num_workers=0,
        device_batch_size=None,
    )
    warnings = []

    with pytest.raises(UsageError, match="enough seen"):
        run.train_run(
            load_recipe("tiny", []), place, replace(NOBODY, warn=warnings.append), init=None
        )

    assert warnings == heard
