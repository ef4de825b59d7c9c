"""The script for the GPU runs through on a CPU, at tiny sizes: every part, and what it writes."""

import json

import pytest
import torch
from conftest import needs_extra

pytest.importorskip("timm")
pytest.importorskip("transformers")
needs_extra("torchao")

import bench_gpu
import gpu_parts
from gpu_cases import Bench
from peer_models import make_models

TINY = ["--device", "cpu", "--tiny"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torchao and dynamo
def test_every_part_runs_and_is_written_down(tmp_path):
    out = tmp_path / "gpu.json"

    status = bench_gpu.main([*TINY, "--out", str(out)])

    result = json.loads(out.read_text())
    failed = {name: part for name, part in result["parts"].items() if "failed" in part}
    assert failed == {}
    assert status == 0
    assert torch.__version__.startswith(result["facts"]["torch"])
    assert set(result["parts"]["parity"]["largest_difference"]) >= {"compile", "recompute"}
    assert result["parts"]["training L/16 224"]["best_images_per_second"] > 0
    assert result["parts"]["float8"]["num_layers"] == 4
    for peer in ("timm", "transformers", "torchvision"):
        assert result["parts"][f"peer {peer}"]["ours_over_theirs"] > 0
    assert result["parts"]["real images"]["share"] > 0


def test_a_part_that_fails_or_comes_too_late_does_not_end_the_call(tmp_path, monkeypatch):
    def broken(_bench):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(bench_gpu, "ceiling", broken)
    out = tmp_path / "gpu.json"

    status = bench_gpu.main([*TINY, "--only", "ceiling", "attention", "--out", str(out)])

    parts = json.loads(out.read_text())["parts"]
    assert parts["ceiling"]["failed"] == "RuntimeError: out of memory"
    assert "chosen" in parts["attention"]["L/16 224"]
    assert status == 1


def test_gradients_that_differ_are_a_failure(monkeypatch):
    bench = Bench(device=torch.device("cpu"), tiny=True, ends_at=1e18)
    monkeypatch.setattr(gpu_parts, "_difference", lambda *_: 0.5)
    monkeypatch.setattr(gpu_parts, "compile_blocks", lambda *_, **__: None)

    assert "differ by 0.5" in gpu_parts.parity(bench)["failed"]


def test_only_a_tiny_run_makes_sense_without_a_gpu(capsys):
    with pytest.raises(SystemExit):
        bench_gpu.parse_args(["--device", "cpu"])
    assert "--tiny" in capsys.readouterr().err


def test_four_libraries_have_the_same_weights():
    args = gpu_parts.sizes_of(tiny=True)["L/16 224"].args
    models = {name: model.eval() for name, model in make_models(args).items()}
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        logits = {name: model(images) for name, model in models.items()}

    for found in logits.values():
        torch.testing.assert_close(found, logits["vit21k"], atol=1e-5, rtol=1e-4)
