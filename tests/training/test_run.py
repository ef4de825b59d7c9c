"""What `train_run` does around the parts that have tests of their own."""

from types import SimpleNamespace

import pytest

from vit21k.distributed import World
from vit21k.errors import UsageError
from vit21k.recipe.load import load_recipe
from vit21k.training import run
from vit21k.training.context import RunOptions
from vit21k.training.reporter import Reporter


@pytest.mark.parametrize(("rank", "heard"), [(0, ["mind"]), (1, [])])
def test_of_several_processes_one_warns(tmp_path, monkeypatch, rank, heard):
    def build_objective(_recipe, _classes, _device, reporter):
        reporter.warn("mind")
        raise UsageError("enough seen")

    class Warnings(Reporter):
        def warn(self, text):
            warnings.append(text)

    monkeypatch.setattr(run, "init_world", lambda _device: World(rank=rank))
    monkeypatch.setattr(run, "open_split_data", lambda *_: SimpleNamespace(classes=("a", "b")))
    monkeypatch.setattr(run, "build_objective", build_objective)
    options = RunOptions(
        manifests=tmp_path,
        root=None,
        run_dir=tmp_path / "run",
        device="cpu",
        num_workers=0,
        device_batch_size=None,
    )
    warnings = []

    with pytest.raises(UsageError, match="enough seen"):
        run.train_run(load_recipe("tiny", []), options, Warnings(), init=None)

    assert warnings == heard
