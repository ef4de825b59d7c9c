import pytest
import torch

vision_transformer = pytest.importorskip("torchvision.models.vision_transformer")

from vit21k.checkpoint.initialise import initialise_from
from vit21k.checkpoint.load import load_model
from vit21k.convert.torchvision import from_torchvision, to_torchvision
from vit21k.models.registry import get_model, model_args

HEADS = {"num_heads": 2}


def make(**overrides):
    torch.manual_seed(1)
    model = vision_transformer.VisionTransformer(
        **{
            "image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2,
            "hidden_dim": 128, "mlp_dim": 96, "num_classes": 5, **overrides,
        }
    )  # fmt: skip
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(torch.randn_like(tensor) * 0.05)
    return model.eval()


@pytest.mark.parametrize(
    "overrides", [{}, {"representation_size": 24}, {"image_size": 48, "patch_size": 16}]
)
def test_logits_are_torchvisions(tmp_path, overrides):
    theirs = make(**overrides)
    torch.save(theirs.state_dict(), tmp_path / "vit_b_16-c867db91.pth")
    size = overrides.get("image_size", 32)
    images = torch.randn(2, 3, size, size)

    model, card = load_model(tmp_path / "vit_b_16-c867db91.pth", model_args=HEADS)

    with torch.no_grad():
        assert torch.allclose(model(images), theirs(images), rtol=1e-5, atol=1e-5)
    assert card.args["representation_size"] == overrides.get("representation_size")
    assert card.eval_settings.mode == "center_crop"
    assert card.eval_settings.mean == (0.485, 0.456, 0.406)


def test_another_size_gives_what_torchvision_gives(tmp_path):
    theirs = make()
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    _, card = load_model(tmp_path / "vit.pth", model_args=HEADS)
    args = {**card.args, "img_size": 48}
    larger = get_model(card.name, **args).eval()

    initialise_from(
        larger,
        tmp_path / "vit.pth",
        args=model_args(card.name, **args),
        classes=card.classes,
        pos_embed_mode="bilinear_align_corners",
    )
    resized = vision_transformer.interpolate_embeddings(
        48, 8, theirs.state_dict(), interpolation_mode="bilinear"
    )
    theirs = make(image_size=48)
    theirs.load_state_dict(resized)

    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.allclose(larger(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_the_names_of_its_first_files_are_read(tmp_path):
    theirs = make()
    old = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): tensor
        for name, tensor in theirs.state_dict().items()
    }
    torch.save(old, tmp_path / "vit.pth")

    model, _ = load_model(tmp_path / "vit.pth", model_args=HEADS)

    assert torch.equal(model.blocks[1].mlp.fc2.weight, theirs.encoder.layers[1].mlp[3].weight)


def test_out_and_in_again_changes_nothing():
    state = make(representation_size=24).state_dict()

    again = to_torchvision(from_torchvision(state, {}).tensors)

    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
