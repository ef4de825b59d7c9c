"""`vit21k eval | predict | features | models: what they have in common`."""

import json
import subprocess
import sys

import pytest

from vit21k.models.cost import macs_per_image, num_params
from vit21k.models.registry import model_args


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["eval", "nowhere"], 3, "no run or model at `nowhere`"),
        (["eval", "tree"], 3, "no model in `tree`"),
        (["eval", "runs/small", "--manifests", "none"], 3, "no val manifest"),
        (["eval", "runs/small", "--device", "abacus"], 2, "cannot compute on `abacus`"),
        (["predict", "nowhere", "tree"], 3, "no run or model at `nowhere`"),
        (["predict", "runs/small", "runs"], 2, "no images in `runs`"),
        (["predict", "runs/small"], 2, "which images?"),
    ],
)
def test_errors_are_one_message_and_an_exit_code(vit21k, images, run_dir, arguments, code, message):
    result = vit21k(*arguments)

    assert result.code == code
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_a_run_that_has_saved_nothing_differs_from_a_folder_without_a_model(
    vit21k, images, tmp_path
):
    (tmp_path / "runs" / "new").mkdir(parents=True)
    (tmp_path / "runs" / "new" / "run.json").write_text("{}")

    result = vit21k("eval", "runs/new")

    assert result.code == 3
    assert "the run in `runs/new` has no checkpoint yet" in result.stderr


def test_models_lists_parameters_and_macs(vit21k):
    rows = {row["name"]: row for row in json.loads(vit21k("models", "--json").stdout)}

    assert rows["vit_large_patch16_224"]["num_params"] == 304_326_632
    assert rows["vit_base_patch16_384"]["num_params"] == 86_859_496
    assert rows["pit_ti_224"]["formats"] == ["vit21k", "timm", "naver", "paddlevit"]
    assert rows["vit_giant_patch14_224"]["source"] == "arXiv:2106.04560"
    columns = "name M params GMACs MB kept pixels patch source formats"
    assert " ".join(vit21k("models").stdout.splitlines()[0].split()) == columns


def test_models_counts_at_another_size(vit21k):
    result = vit21k("models", "--img-size", "448", "--json")

    for row in json.loads(result.stdout):
        args = model_args(row["name"], img_size=448)
        assert row["num_params"] == num_params(args)
        assert row["macs_per_image"] == macs_per_image(args)


def test_models_lists_the_formats_that_are_read(vit21k):
    formats = json.loads(vit21k("models", "--formats", "--json").stdout)

    assert {"timm", "google", "plsc"} <= formats.keys()
    assert vit21k("models", "--formats").stdout.count("\n") == len(formats) + 1


def test_models_show_prints_how_a_checkpoint_is_opened(vit21k, tmp_path):
    torch = pytest.importorskip("torch")
    from vit21k.models.registry import get_model  # noqa: PLC0415 (with torch)

    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
    model = get_model("vit_tiny_patch16_224", num_classes=5, reg_tokens=2, **shape)
    torch.save(model.state_dict(), tmp_path / "w.pth")

    refused = vit21k("models", "show", "w.pth")
    found = json.loads(
        vit21k("models", "show", "w.pth", "--set", "model.num_heads=3", "--mean", "0.1", "0.2",
               "0.3", "--json").stdout
    )  # fmt: skip
    unknown = vit21k("models", "list")

    assert refused.code == 2
    assert "how many attention heads" in refused.stderr
    assert (found["format"], found["num_classes"]) == ("timm", 5)
    assert found["args"]["reg_tokens"] == 2
    assert found["num_params"] == sum(p.numel() for p in model.parameters())
    assert found["preprocessing"]["mean"] == [0.1, 0.2, 0.3]
    assert any("images are prepared" in warning for warning in found["warnings"])
    assert unknown.code == 2
    assert "models show PATH" in unknown.stderr


_WITHOUT = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
sys.argv[:] = ["vit21k", *sys.argv[2:]]
from vit21k.cli.app import main
main()
"""


def without(modules, *arguments):
    """Run a command in a process in which *modules* cannot be imported."""
    command = [sys.executable, "-c", _WITHOUT, modules, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", [["eval", "run"], ["predict", "run", "a.jpg"]])
def test_without_torch_the_command_to_install_it_is_given(command):
    result = without("torch,torchvision,safetensors", *command)

    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"error: `vit21k {command[0]}` needs torch, which is not installed",
        "",
        "hint: install it with: pip install 'vit21k[train]'",
    ]


def test_without_safetensors_alone_that_is_named():
    result = without("safetensors", "eval", "run")

    assert result.returncode == 1
    assert "needs safetensors" in result.stderr
    assert "pip install 'vit21k[train]'" in result.stderr


@pytest.mark.parametrize("arguments", [["models"], ["recipes", "check", "pretrain_l16_in21k"]])
def test_models_and_recipes_need_no_torch(arguments):
    assert without("torch,torchvision,safetensors", *arguments).returncode == 0


@pytest.fixture
def foreign(tmp_path):
    """A file of weights, in a place where nothing says how images are prepared for them."""
    torch = pytest.importorskip("torch")
    from vit21k.models.registry import get_model  # noqa: PLC0415

    model = get_model("vit_tiny_patch16_224", num_classes=3, embed_dim=192, depth=1)
    path = tmp_path / "weights.pth"
    torch.save({"arch": "vit_tiny_patch16_224", "state_dict": model.state_dict()}, path)
    return path


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "weights.pth", "tree/ant/0.png"),
        ("features", "weights.pth", "tree/ant/0.png"),
        ("explain", "weights.pth", "tree/ant/0.png"),
        ("eval", "weights.pth"),
        ("serve", "weights.pth", "--port", "0"),
        ("export", "weights.pth", "--to", "safetensors"),
    ],
)
def test_assumed_preprocessing_is_said_and_options_settle_it(
    vit21k, images, foreign, monkeypatch, command
):
    if command[0] == "serve":
        pytest.importorskip("uvicorn")
        monkeypatch.setattr(
            "vit21k.serving.server.serve", lambda _app, _limits, listening, **_: listening.close()
        )
    assumed = "assumed: --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 --crop-pct 0.9 --interpolation bicubic"
    options = "--mean 0.4 0.5 0.6 --std 0.2 0.3 0.4 --crop-pct 0.875 --interpolation bilinear"

    told = vit21k(*command).stderr
    settled = vit21k(*command, "--out", "there", *options.split()) if command[0] in (
        "export", "features") else vit21k(*command, *options.split())  # fmt: skip

    assert sum(assumed in line for line in told.splitlines()) == 1
    assert "assumed" not in settled.stderr
    assert settled.code == (3 if command[0] == "eval" else 0)  # eval: of other classes


def test_options_travel_with_an_export(vit21k, foreign):
    options = "--mean 0.4 0.5 0.6 --std 0.2 0.3 0.4 --crop-pct 0.875 --interpolation bilinear"

    vit21k("export", foreign, "--to", "safetensors", "--out", "folder", *options.split())

    from vit21k.checkpoint.load import load_model  # noqa: PLC0415

    settings = load_model("folder")[1].eval_settings
    assert (settings.mean, settings.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert (settings.mode, settings.resize) == ("center_crop", 256)
    assert (settings.interpolation, settings.margin) == ("bilinear", "round")


@pytest.mark.parametrize("options", ["--std 0.5 0.5 0", "--mean nan 0 0", "--crop-pct 1.5"])
def test_preprocessing_that_cannot_be_is_a_usage_error(vit21k, foreign, options):
    assert vit21k("predict", foreign, "a.png", *options.split()).code == 2


@pytest.mark.parametrize(
    ("value", "wanted"), [("tcp://10.0.0.1:80", 8000), ("udp://10.0.0.1:80", 8000), ("9123", 9123)]
)
def test_the_port_that_kubernetes_sets_for_a_service_is_no_option(
    vit21k, run_dir, monkeypatch, value, wanted
):
    pytest.importorskip("uvicorn")
    asked = []
    monkeypatch.setenv("VIT21K_SERVE_PORT", value)
    monkeypatch.setattr("vit21k.serving.server.bind", lambda host, port: asked.append((host, port)))
    monkeypatch.setattr("vit21k.serving.server.serve", lambda *_, **__: None)
    monkeypatch.setattr("vit21k.serving.server.address_of", lambda _: "http://x")

    result = vit21k("serve", run_dir)

    assert result.code == 0, result.stderr
    assert asked == [("127.0.0.1", wanted)]
