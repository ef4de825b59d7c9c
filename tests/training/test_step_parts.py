"""Results of trials are stored with the run; compiled and float8 blocks compute the same."""

import json
import os
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import needs_extra
from torch._dynamo import reset
from torch._dynamo.utils import counters

from vit21k.errors import UsageError
from vit21k.losses.sparse import multi_label_loss
from vit21k.models.attention import Trial
from vit21k.models.registry import build_model, model_args
from vit21k.recipe.schema import StepSection
from vit21k.training import step
from vit21k.training.step import (
    StepShape,
    blocks_of,
    compile_blocks,
    prepare_step,
    use_float8_mlps,
)

CPU = torch.device("cpu")


def small_model(*, recompute=False, **args):
    torch.manual_seed(0)
    fields = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, **args}
    args = model_args("vit_tiny_patch16_224", num_classes=5, **fields)
    model = build_model(args, recompute=recompute)
    torch.nn.init.normal_(model.head.weight)
    return model.train()


def loss_of(model, batch):
    logits = model(batch.images_BCHW.float() / 255)
    return multi_label_loss(logits, batch.label_rows_L, batch.label_ids_L)


def shape(dtype=torch.float32):
    return StepShape(img_size=32, device_batch_size=2, dtype=dtype)


def prepare(model, run_dir=None, dtype=torch.float32, **section):
    section = StepSection(**section)
    return prepare_step(model, section, shape(dtype), loss_of=loss_of, device=CPU, run_dir=run_dir)


def loss_and_gradients(model):
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    loss = model(images).logsumexp(dim=1).sum()
    loss.backward()
    return loss.detach(), [param.grad for param in model.parameters()]


def test_on_a_cpu_a_small_step_is_left_as_it_is(tmp_path):
    model = small_model()

    assert prepare(model, tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    assert all(block._compiled_call_impl is None for block in blocks_of(model))


def test_the_attention_of_a_recipe_is_used_in_every_block():
    model = small_model()

    prepare(model, attention="math")

    assert {block.attn.backend.name for block in blocks_of(model)} == {"MATH"}


def test_the_result_of_a_trial_is_stored_with_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "_FLOPS_WORTH_A_TRIAL", 0)
    asked = []

    def trial(shape, **_):
        asked.append(shape)
        return [Trial("flash", 2e-3, 0.0, ""), Trial("math", 1e-3, 0.0, "")]

    monkeypatch.setattr(step, "try_backends", trial)
    model = small_model()

    notes = prepare(model, tmp_path)
    again = prepare(small_model(), tmp_path)

    assert notes == again == ["attention: math (flash 2.00 ms, math 1.00 ms)"]
    assert asked == [(2, 2, 17, 16)]
    assert {block.attn.backend.name for block in blocks_of(model)} == {"MATH"}
    prepare(small_model(), tmp_path, torch.bfloat16)
    assert len(asked) == 2  # another type of numbers


def test_compiled_blocks_are_chosen_if_they_are_faster(tmp_path, monkeypatch):
    seconds = iter([1.0, 2.0])
    monkeypatch.setattr(step, "step_seconds", lambda *_: next(seconds))
    compiled = []
    monkeypatch.setattr(step, "compile_blocks", compiled.append)
    cache = step.TrialCache(tmp_path / "trials.json", {}, CPU)

    choice = step._try_compile(small_model(), shape(), loss_of, cache, step.World())
    cache.save()

    assert choice == "blocks"
    assert cache.shown("compile") == "none 2000.0 ms, blocks 1000.0 ms"
    assert len(compiled) == 1  # a copy, for the trial
    assert json.loads((tmp_path / "trials.json").read_text())["found"]["compile"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"found": {}}', b"\xff"])
def test_results_of_trials_that_cannot_be_read_are_ignored(tmp_path, content):
    (tmp_path / "trials.json").write_bytes(content)

    cache = step.TrialCache(tmp_path / "trials.json", {}, CPU)
    cache.set("compile", "none", {})
    cache.save()

    assert step.TrialCache(tmp_path / "trials.json", {}, CPU).get("compile") == "none"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of inductor
@pytest.mark.parametrize(
    ("backend", "recompute", "depth"),
    [("inductor", "none", 1), ("aot_eager", "none", 10), ("aot_eager", "cheap", 10)],
    ids=str,
)
def test_compiled_blocks_compute_the_same_and_few_graphs_do_for_all(
    monkeypatch, backend, recompute, depth
):
    capability = torch.backends.cpu.get_cpu_capability()
    if backend == "inductor" and capability == "DEFAULT":
        pytest.skip("torch's inductor writes vector code, which ATEN_CPU_CAPABILITY=default lacks")
    # With another ATEN_CPU_CAPABILITY inductor uses what it has cached, and computes NaN.
    folder = Path(tempfile.gettempdir(), f"inductor-{os.getuid()}-{capability}")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    reset()
    counters.clear()
    # A graph of inductor takes a minute.
    model = small_model(depth=depth, drop_path_rate=0.0, recompute=recompute == "cheap")
    names = list(model.state_dict())
    loss, gradients = loss_and_gradients(model)

    prepare(model, compile="none", attention="flash")
    compile_blocks(model, backend=backend)
    compiled_loss, compiled_gradients = loss_and_gradients(model)

    torch.testing.assert_close(compiled_loss, loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(compiled_gradients, gradients, atol=1e-4, rtol=1e-3)
    assert counters["stats"]["unique_graphs"] == min(depth, 2)
    assert list(model.state_dict()) == names


@pytest.mark.filterwarnings("ignore")  # of dynamo
def test_every_rate_of_stochastic_depth_shares_what_is_compiled():
    reset()
    counters.clear()
    model = small_model(depth=12, drop_path_rate=0.3)

    compile_blocks(model, backend="eager")
    loss_and_gradients(model)

    assert counters["stats"]["unique_graphs"] <= 4


def test_float8_is_refused_where_the_device_has_none():
    with pytest.raises(UsageError, match="no 8-bit matrix products"):
        prepare(small_model(), float8="mlp")


@pytest.mark.filterwarnings("ignore")  # of torchao
def test_float8_takes_the_mlps_only_and_keeps_names_and_weights():
    needs_extra("torchao")
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss, gradients = loss_and_gradients(model)

    num_layers = use_float8_mlps(model, CPU, emulate=True)
    float8_loss, float8_gradients = loss_and_gradients(model)

    assert num_layers == 2 * 3
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in before.items()
    }
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    torch.testing.assert_close(float8_loss, loss, atol=0.2, rtol=0.05)
    assert not torch.equal(float8_loss, loss)
    flat = [torch.cat([g.flatten() for g in grads]) for grads in (gradients, float8_gradients)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.99
