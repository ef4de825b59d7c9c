"""`precision: auto`, and what is said of a precision that the processor emulates."""

import hashlib
import shutil

import pytest
import torch

from vit21k import machine
from vit21k.device import best_precision, is_emulated
from vit21k.distributed import World
from vit21k.recipe.load import load_recipe
from vit21k.training.context import resolve_precision
from vit21k.training.reporter import Reporter

TRAIN = ["train", "--recipe", "tiny", "--run-dir", "run", "--device", "cpu"]
SMALL = ["total_steps=4", "schedule.warmup_steps=1", "data.global_batch_size=4"]
SMALL += ["model.depth=1", "model.embed_dim=16", "model.num_heads=2", "run.eval_every_steps=4"]
SMALL += ["run.save_every_steps=2", "run.keep_last=2"]
AUTO = [*TRAIN, *(word for change in SMALL for word in ("--set", change)), "--set"]


@pytest.fixture
def processor(monkeypatch):
    """A function that says what the processor has instructions for."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)

    def has(*precisions):
        monkeypatch.setattr(machine, "cpu_multiplies", lambda precision: precision in precisions)

    return has


def weights(run):
    return hashlib.sha256((run / "checkpoints/step-00000004/model.safetensors").read_bytes())


@pytest.mark.parametrize(("has", "wanted"), [(["bf16"], "bf16"), ([], "fp32")])
def test_auto_is_bf16_where_it_is_in_hardware_and_is_recorded(
    vit21k, images, tmp_path, processor, has, wanted
):
    processor(*has)

    result = vit21k(*AUTO, "precision=auto")

    assert result.code == 0, result.stderr
    assert f"precision: {wanted} (auto, on this cpu)" in result.stderr
    assert "emulated" not in result.stderr
    assert f"precision: {wanted}\n" in (tmp_path / "run/recipe.yaml").read_text()


def test_a_resumed_run_keeps_its_precision_on_another_processor(
    vit21k, images, tmp_path, processor
):
    processor("bf16")
    assert vit21k(*AUTO, "precision=auto").code == 0
    wanted = weights(tmp_path / "run").hexdigest()
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000004")

    processor()
    result = vit21k(*AUTO, "precision=auto")

    assert result.code == 0, result.stderr
    assert "precision: bf16 (as the run began)" in result.stderr
    assert "precision bf16 is emulated on this cpu" in result.stderr
    assert weights(tmp_path / "run").hexdigest() == wanted


def test_a_run_that_starts_over_chooses_again(vit21k, images, tmp_path, processor):
    processor("bf16")
    assert vit21k(*AUTO, "precision=auto").code == 0

    processor()
    result = vit21k(*AUTO, "precision=auto", "--fresh")

    assert result.code == 0, result.stderr
    assert "precision: fp32 (auto, on this cpu)" in result.stderr


@pytest.mark.parametrize(
    ("precision", "has", "is_said"),
    [("bf16", [], True), ("bf16", ["bf16"], False), ("fp16", ["bf16"], True), ("fp32", [], False)],
)
def test_a_dry_run_says_that_a_precision_is_emulated(
    vit21k, images, processor, precision, has, is_said
):
    processor(*has)

    result = vit21k(*AUTO, f"precision={precision}", "--dry-run", "--rate", "9")

    assert result.code == 0, result.stderr
    assert (f"precision {precision} is emulated on this cpu" in result.stderr) is is_said


def test_processes_agree_on_a_precision(processor):
    class WithAnOldProcessor(World):
        def all_reduce_sum(self, tensor):
            return tensor + 1

    processor("bf16")
    recipe = load_recipe("tiny", ["precision=auto"])

    chosen = [
        resolve_precision(recipe, "cpu", world, run_dir=None, reporter=Reporter()).products_in
        for world in (World(), WithAnOldProcessor(world_size=2))
    ]

    assert chosen == ["bf16", "fp32"]


def test_without_onednn_16_bits_are_emulated(monkeypatch, processor):
    processor("bf16", "fp16")
    assert best_precision("cpu") == "bf16"

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)

    assert best_precision("cpu") == "fp32"
    assert is_emulated("cpu", "fp16")


@pytest.mark.parametrize(("in_hardware", "wanted"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_that_emulates_bfloat16_is_not_asked_for_it(monkeypatch, in_hardware, wanted):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: in_hardware)

    assert best_precision("cuda") == wanted
    assert not is_emulated("cuda", "fp16")


def test_the_recipe_for_processors_chooses_by_processor():
    recipe = load_recipe("cifar10_cpu", [])

    assert recipe.precision == "auto"
    with pytest.raises(ValueError, match="not resolved"):
        _ = recipe.products_in
