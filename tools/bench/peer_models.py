"""The same Vision Transformer with the same weights in four libraries, for comparisons."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from vit21k.convert.torchvision import to_torchvision
from vit21k.convert.transformers import to_transformers
from vit21k.models.registry import build_model

NAMES = ("vit21k", "timm", "torchvision", "transformers")
_RENAMED = {
    "vit.encoder.layer.": "vit.layers.",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


class Logits(nn.Module):
    """A model of transformers that returns logits as the others do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of normalised images."""
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def make_models(args: Mapping[str, Any], names: tuple[str, ...] = NAMES) -> dict[str, nn.Module]:
    """Return the model of constructor arguments *args* in each library, with the same weights."""
    torch.manual_seed(0)
    ours = build_model(args)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.startswith("head"):
                parameter.normal_(std=0.02)
    state = ours.state_dict()
    makers: dict[str, Callable[[], nn.Module]] = {
        "vit21k": lambda: ours,
        "timm": lambda: _timm(args, state),
        "torchvision": lambda: _torchvision(args, state),
        "transformers": lambda: _transformers(args, state),
    }
    return {name: makers[name]().train() for name in names}


def blocks_of(name: str, model: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks of a model of the library *name*."""
    lists: dict[str, Callable[[Any], Any]] = {
        "vit21k": lambda m: m.blocks,
        "timm": lambda m: m.blocks,
        "torchvision": lambda m: m.encoder.layers,
        "transformers": lambda m: next(
            part for part in m.modules() if isinstance(part, nn.ModuleList)
        ),
    }
    return list(lists[name](model))


def _timm(args: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    timm = import_module("timm")
    model: nn.Module = timm.models.VisionTransformer(
        **_some(args, "img_size", "patch_size", "num_classes", "embed_dim", "depth", "num_heads")
    )
    model.load_state_dict(state)
    return model


def _torchvision(args: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    models = import_module("torchvision.models.vision_transformer")
    model: nn.Module = models.VisionTransformer(
        image_size=args["img_size"],
        patch_size=args["patch_size"],
        num_layers=args["depth"],
        num_heads=args["num_heads"],
        hidden_dim=args["embed_dim"],
        mlp_dim=int(args["embed_dim"] * args["mlp_ratio"]),
        num_classes=args["num_classes"],
    )
    model.load_state_dict(to_torchvision(state))
    return model


def _transformers(args: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    transformers = import_module("transformers")
    config = transformers.ViTConfig(
        image_size=args["img_size"],
        patch_size=args["patch_size"],
        num_hidden_layers=args["depth"],
        num_attention_heads=args["num_heads"],
        hidden_size=args["embed_dim"],
        intermediate_size=int(args["embed_dim"] * args["mlp_ratio"]),
        num_labels=args["num_classes"],
        layer_norm_eps=args["norm_eps"],
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    model = transformers.ViTForImageClassification(config)
    names = to_transformers(state)
    if "vit.layers.0.attention.q_proj.weight" in model.state_dict():  # its names since version 5
        names = {_since_5(name): tensor for name, tensor in names.items()}
    model.load_state_dict(names)
    return Logits(model)


def _since_5(name: str) -> str:
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    return name


def _some(args: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: args[name] for name in names}
