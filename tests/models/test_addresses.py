import hashlib
from pathlib import Path

import pytest
import torch
from file_server import serving
from safetensors.torch import save

from vit21k.checkpoint.load import load_model
from vit21k.convert.download import fetch, is_address
from vit21k.errors import CheckpointError, UsageError
from vit21k.models.registry import get_model

NPZ = Path(__file__).parents[1] / "fixtures" / "google_vit" / "ViT-tiny-google.npz"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 1, "num_heads": 2}
AUGREG = "L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0"
FINE_TUNED = f"{AUGREG}--imagenet2012-steps_20k-lr_0.01-res_384"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("VIT21K_CACHE", str(tmp_path / "cache"))
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield server


@pytest.mark.parametrize(
    ("address", "object_"),
    [
        ("gs://vit_models/imagenet21k/ViT-B_16.npz", "vit_models/imagenet21k/ViT-B_16.npz"),
        ("ViT-L_16", "vit_models/imagenet21k/ViT-L_16.npz"),
        ("ViT-L_16.npz", "vit_models/imagenet21k/ViT-L_16.npz"),
        ("R50+ViT-B_16", "vit_models/imagenet21k/R50%2BViT-B_16.npz"),
        ("ViT-B_16-384", "vit_models/imagenet21k%2Bimagenet2012/ViT-B_16.npz"),
        ("ViT-L_16-224", "vit_models/imagenet21k%2Bimagenet2012/ViT-L_16-224.npz"),
        (AUGREG, f"vit_models/augreg/{AUGREG}.npz"),
        (f"{FINE_TUNED}.npz", f"vit_models/augreg/{FINE_TUNED}.npz"),
        ("https:/storage.example/w.npz", None),
    ],
)
def test_names_and_addresses_of_google_lead_to_its_bucket(server, address, object_):
    assert is_address(address)
    if object_ is None:
        return
    server.files[f"/{object_}"] = NPZ.read_bytes()

    model, card = load_model(address)

    assert card.args["act_layer"] == "gelu_tanh"
    assert model.num_classes == 37
    assert server.requests == [(f"/{object_}", None)]


@pytest.mark.parametrize("revision", ["main", "v1.0"])
def test_a_repository_is_read_with_the_files_next_to_the_weights(server, revision):
    theirs = get_model("vit_tiny_patch16_224", num_classes=2, **SMALL)
    base = f"/timm/vit_small/resolve/{revision}"
    server.files[f"{base}/config.json"] = (
        b'{"architecture": "vit_tiny_patch16_224", "label_names": ["n1", "n2"],'
        b' "model_args": {"num_heads": 2, "embed_dim": 128}, "pretrained_cfg": {"crop_pct": 0.9}}'
    )
    server.files[f"{base}/model.safetensors"] = save(theirs.state_dict())
    suffix = "" if revision == "main" else f"@{revision}"

    model, card = load_model(f"hf://timm/vit_small{suffix}")

    assert torch.equal(model.head.weight, theirs.head.weight)
    assert card.classes.wnids == ("n1", "n2")
    assert card.warnings == ()


def test_one_file_of_a_repository_can_be_named(server):
    server.files["/owner/name/resolve/main/sub/w.npz"] = NPZ.read_bytes()

    assert fetch("hf://owner/name/sub/w.npz").read_bytes() == NPZ.read_bytes()


@pytest.mark.parametrize("address", ["hf://owner/name/w.npz", "gs://bucket/w.npz"])
def test_a_checksum_counts_for_every_kind_of_address(server, address):
    server.files["/owner/name/resolve/main/w.npz"] = NPZ.read_bytes()
    server.files["/bucket/w.npz"] = NPZ.read_bytes()
    right = hashlib.sha256(NPZ.read_bytes()).hexdigest()

    assert fetch(f"{address}#sha256={right}").read_bytes() == NPZ.read_bytes()
    with pytest.raises(CheckpointError, match="its sha256 is"):
        fetch(f"{address}#sha256={'0' * 64}")
    with pytest.raises(UsageError, match="is a repository"):
        fetch(f"hf://owner/name#sha256={right}")


def test_a_path_that_lost_a_slash_is_still_an_address(server):
    server.files["/owner/name/resolve/main/w.npz"] = NPZ.read_bytes()

    model, _ = load_model(Path("hf://owner/name/w.npz"))

    assert model.num_classes == 37


def test_a_repository_without_weights_is_said(server):
    with pytest.raises(CheckpointError, match=r"none of model\.safetensors"):
        fetch("hf://owner/name")


@pytest.mark.parametrize("address", ["http://example.org/w.npz", "hf://name"])
def test_what_is_not_safe_or_no_address_is_refused(server, address):
    with pytest.raises(UsageError):
        fetch(address)


@pytest.mark.parametrize("path", ["runs/tiny", "ViT", "model.npz", "weights/ViT-L_16.pth", "B_16"])
def test_paths_are_not_treated_as_addresses(path):
    assert not is_address(path)


def test_a_file_here_goes_before_a_name_in_the_bucket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_address("ViT-L_16.npz")
    Path("ViT-L_16.npz").touch()

    assert not is_address("ViT-L_16.npz")
