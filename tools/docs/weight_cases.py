"""Small random models as other programs save them, and the logits of those programs.

Every model is built, and as far as possible saved, by the library's own code; where a file has the
names of the authors of a model, timm reads it too, and gives the logits.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file
from timm.layers.mlp import SwiGLUPacked
from timm.models import save_for_hf
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

SIDE, HEADS = 32, 3
TINY: dict[str, Any] = {
    "img_size": SIDE, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": HEADS,
    "num_classes": 5,
}  # fmt: skip
HF_TINY: dict[str, Any] = {
    "image_size": SIDE, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "intermediate_size": 96,
}  # fmt: skip
IMAGES = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
TANH = partial(nn.GELU, approximate="tanh")

Built = tuple[Path, Tensor]
"""A file or folder, and the logits (or, without a head, the features) of `IMAGES`."""


@dataclass(frozen=True)
class Case:
    """A checkpoint.

    Attributes:
        name: What it is, for people.
        format: The key of `models.registry.FORMATS`.
        build: Saves it in a folder.
        args: Arguments of the model that nothing in the file says.
        weights: "raw" or "ema", where it has both.
    """

    name: str
    format: str
    build: Callable[[Path], Built]
    args: Mapping[str, Any] = field(default_factory=dict)
    weights: Any = None


def randomised(model: Any) -> Any:
    """Return *model* with random parameters, none of them 0 or 1."""
    drawn = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=drawn) * 0.15)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model.eval()


@torch.no_grad()
def outputs(model: Any) -> Any:
    """Return the logits of `IMAGES`."""
    return model(IMAGES)


def vit(**args: Any) -> Any:
    """Return timm's model of the usual tiny shape."""
    return randomised(VisionTransformer(**{**TINY, **args}))


def saved(
    rename: Callable[[dict[str, Tensor]], Mapping[str, Any]] = dict, **args: Any
) -> Callable[[Path], Built]:
    """Return a builder of a ``.pth`` that has timm's model of *args* under other names.

    timm's own reader of published files has to give the same model.
    """

    def build(folder: Path) -> Built:
        model = vit(**args)
        state = rename(model.state_dict())
        torch.save(state, folder / "w.pth")
        again = vit(**args)
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.zero_()
        read = checkpoint_filter_fn(
            {**torch.load(folder / "w.pth")}, again, adapt_layer_scale=True, interpolation="bicubic"
        )
        again.load_state_dict(read, strict=False)
        assert torch.allclose(outputs(again), outputs(model), atol=1e-6), "timm reads it otherwise"  # noqa: S101
        return folder / "w.pth", outputs(model)

    return build


def _replaced(state: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for before, tensor in state.items():
        name = before
        for ours, theirs in table.items():
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed


def deit3(state: dict[str, Tensor]) -> dict[str, Any]:
    """Return *state* in the names of DeiT III's authors."""
    return {"model": _replaced(state, {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"})}


def mae(state: dict[str, Tensor]) -> dict[str, Any]:
    """Return *state* with the decoder of MAE's pretraining."""
    width = 16
    spare = {
        "mask_token": torch.zeros(1, 1, width),
        "decoder_pos_embed": torch.zeros(1, 17, width),
        "decoder_embed.weight": torch.zeros(width, 48),
        "decoder_blocks.0.norm1.weight": torch.zeros(width),
        "decoder_pred.weight": torch.zeros(192, width),
    }
    return {"model": {**state, **spare}}


def dinov2(state: dict[str, Tensor], *, chunks: bool = False) -> dict[str, Any]:
    """Return *state* in the names of DINOv2's authors."""
    state = {**state, "mask_token": torch.zeros(1, 48)}
    if "reg_token" in state:  # their class token has a position, and registers have none
        state["register_tokens"] = state.pop("reg_token")
        first = torch.full((1, 1, 48), 0.25)
        state["cls_token"] = state["cls_token"] - first
        state["pos_embed"] = torch.cat([first, state["pos_embed"]], dim=1)
    if chunks:
        state = _replaced(state, {"blocks.0.": "blocks.0.0.", "blocks.1.": "blocks.1.1."})
    return state


def dinov2_giant(state: dict[str, Tensor]) -> dict[str, Any]:
    """Return *state* in the names of DINOv2's giant, which has a SwiGLU."""
    return dinov2(_replaced(state, {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}))


def clip(state: dict[str, Tensor]) -> dict[str, Any]:
    """Return *state* as the image tower in a state dict of CLIP, with some of the text tower."""
    table = {
        "patch_embed.proj": "conv1", "norm_pre": "ln_pre", "blocks.": "transformer.resblocks.",
        "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj", "norm1": "ln_1", "norm2": "ln_2",
    }  # fmt: skip
    renamed = {
        name.replace("norm.", "ln_post."): tensor
        for name, tensor in _replaced(state, table).items()
    }
    renamed["class_embedding"] = renamed.pop("cls_token")[0, 0]
    renamed["positional_embedding"] = renamed.pop("pos_embed")[0]
    tower = {f"visual.{name}": tensor for name, tensor in renamed.items()}
    text = {
        "token_embedding.weight": torch.zeros(9, 16),
        "positional_embedding": torch.zeros(4, 16),
        "transformer.resblocks.0.ln_1.weight": torch.zeros(16),
        "ln_final.weight": torch.zeros(16),
        "text_projection": torch.zeros(16, 8),
        "logit_scale": torch.zeros(()),
    }
    return {**text, **tower, "visual.proj": torch.zeros(48, 8)}


def distilled(folder: Path) -> Built:
    """Save DeiT's distilled model."""
    make: Any = VisionTransformerDistilled
    model = randomised(make(**TINY))
    torch.save({"model": model.state_dict()}, folder / "w.pth")
    return folder / "w.pth", outputs(model)


def dino(folder: Path) -> Built:
    """Save a checkpoint of DINO's training: student, teacher, projections."""
    model = vit(num_classes=0)

    def half(prefix: str, shift: float) -> dict[str, Tensor]:
        names = {f"{prefix}backbone.{k}": v + shift for k, v in model.state_dict().items()}
        return {**names, f"{prefix}head.mlp.0.weight": torch.zeros(8, 48)}

    torch.save({"student": half("module.", 0.1), "teacher": half("", 0.0)}, folder / "w.pth")
    return folder / "w.pth", outputs(model)


class _LinearHead(nn.Module):
    """Facebook's `_LinearClassifierWrapper` with one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = vit(num_classes=0, init_values=1.0)
        self.linear_head = nn.Linear(96, 5)

    def forward(self, images_BCHW: Tensor) -> Any:
        tokens_BND = self.backbone.forward_features(images_BCHW)
        return self.linear_head(torch.cat([tokens_BND[:, 0], tokens_BND[:, 1:].mean(1)], dim=1))


def linear_head(folder: Path) -> Built:
    """Save DINOv2 with its linear classifier."""
    model = randomised(_LinearHead())
    torch.save(model.state_dict(), folder / "w.pth")
    return folder / "w.pth", outputs(model)


def timm_folder(name: str = "vit_tiny_patch16_224", **args: Any) -> Callable[[Path], Built]:
    """Return a builder of the folder that timm pushes to the hub."""

    def build(folder: Path) -> Built:
        args_ = {**TINY, **args}
        model = randomised(timm.create_model(name, **args_))
        args_.pop("num_classes")
        save_for_hf(model, str(folder), model_args=args_, safe_serialization=True)
        return folder, outputs(model)

    return build


def mmpretrain(state: dict[str, Tensor]) -> dict[str, Any]:
    """Return *state* in MMPretrain's names."""
    table = {
        "patch_embed.proj": "patch_embed.projection", "blocks.": "layers.", "norm1": "ln1",
        "norm2": "ln2", "mlp.fc1": "ffn.layers.0.0", "mlp.fc2": "ffn.layers.1",
        "ls1.gamma": "attn.gamma1.weight", "ls2.gamma": "ffn.gamma2.weight",
    }  # fmt: skip
    named = {}
    for before, tensor in _replaced(state, table).items():
        name = before.replace("fc_norm.", "ln2.").replace("norm.", "ln1.")
        head = name.startswith("head.")
        named[name.replace("head.", "head.layers.head.") if head else f"backbone.{name}"] = tensor
    return {"meta": {"epoch": 1}, "state_dict": named}


def mm(**args: Any) -> Callable[[Path], Built]:
    """Return a builder of a file of MMPretrain, from timm's model."""

    def build(folder: Path) -> Built:
        model = vit(**args)
        torch.save(mmpretrain(model.state_dict()), folder / "w.pth")
        return folder / "w.pth", outputs(model)

    return build


def _attention(prefix: str, parts: Mapping[str, Tensor]) -> Iterator[tuple[str, np.ndarray]]:
    for part, (weight, bias) in parts.items():
        if part == "out":
            kernel = weight.T.reshape(HEADS, -1, weight.shape[0])
        else:
            kernel = weight.T.reshape(weight.shape[1], HEADS, -1)
        yield f"{prefix}{part}/kernel", kernel.numpy()
        yield f"{prefix}{part}/bias", (bias if part == "out" else bias.reshape(HEADS, -1)).numpy()


def _layer(state: Mapping[str, Tensor], ours: str, theirs: str) -> dict[str, np.ndarray]:
    weight, bias = state[f"{ours}.weight"], state[f"{ours}.bias"]
    dims = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[weight.ndim]
    leaf = "scale" if weight.ndim == 1 else "kernel"
    return {f"{theirs}/{leaf}": weight.permute(dims).numpy(), f"{theirs}/bias": bias.numpy()}


def _split(state: Mapping[str, Tensor], ours: str, *names: str) -> dict[str, Any]:
    pairs = (state[f"{ours}.{leaf}"].chunk(len(names)) for leaf in ("weight", "bias"))
    return dict(zip(names, zip(*pairs, strict=True), strict=True))


def big_vision(state: Mapping[str, Tensor], *, scan: bool = False) -> dict[str, np.ndarray]:
    """Return timm's *state* in the layout of big_vision."""
    arrays = {"pos_embedding": state["pos_embed"].numpy()}
    if "cls_token" in state:
        arrays["cls"] = state["cls_token"].numpy()
    for ours, theirs in (("patch_embed.proj", "embedding"), ("norm", "Transformer/encoder_norm"),
                         ("head", "head")):  # fmt: skip
        if f"{ours}.weight" in state:
            arrays |= _layer(state, ours, theirs)
    for index in range(TINY["depth"]):
        ours, theirs = f"blocks.{index}", f"Transformer/encoderblock_{index}"
        for mine, its in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_1"),
                          ("mlp.fc1", "MlpBlock_0/Dense_0"), ("mlp.fc2", "MlpBlock_0/Dense_1")):  # fmt: skip
            arrays |= _layer(state, f"{ours}.{mine}", f"{theirs}/{its}")
        parts = _split(state, f"{ours}.attn.qkv", "query", "key", "value")
        parts |= _split(state, f"{ours}.attn.proj", "out")
        arrays |= _attention(f"{theirs}/MultiHeadDotProductAttention_0/", parts)
    if "attn_pool.latent" in state:
        arrays |= _map_head(state)
    return _scanned(arrays) if scan else arrays


def _map_head(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    arrays = {"MAPHead_0/probe": state["attn_pool.latent"].numpy()}
    for mine, its in (("norm", "LayerNorm_0"), ("mlp.fc1", "MlpBlock_0/Dense_0"),
                      ("mlp.fc2", "MlpBlock_0/Dense_1")):  # fmt: skip
        arrays |= _layer(state, f"attn_pool.{mine}", f"MAPHead_0/{its}")
    parts = _split(state, "attn_pool.q", "query") | _split(state, "attn_pool.kv", "key", "value")
    parts |= _split(state, "attn_pool.proj", "out")
    return arrays | dict(_attention("MAPHead_0/MultiHeadDotProductAttention_0/", parts))


def _scanned(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    blocks = [f"Transformer/encoderblock_{index}/" for index in range(TINY["depth"])]
    stacked = {
        name.replace("encoderblock_0", "encoderblock"): np.stack(
            [arrays[name.replace(blocks[0], block)] for block in blocks]
        )
        for name in arrays
        if name.startswith(blocks[0])
    }
    return {**{k: v for k, v in arrays.items() if "encoderblock" not in k}, **stacked}


def npz(prefix: str, *, scan: bool = False, **args: Any) -> Callable[[Path], Built]:
    """Return a builder of a file of big_vision, which timm reads too."""

    def build(folder: Path) -> Built:
        model = vit(act_layer=TANH, **args)
        arrays = {f"{prefix}{k}": v for k, v in big_vision(model.state_dict(), scan=scan).items()}
        if prefix.endswith("img/"):
            arrays["params/txt/Embed_0/embedding"] = np.zeros((4, 8), np.float32)
            arrays["params/t"] = np.zeros(1, np.float32)
        contents: dict[str, Any] = arrays
        np.savez(folder / "w.npz", **contents)
        again: Any = VisionTransformer(**{**TINY, "act_layer": TANH, **args}).eval()
        again.load_pretrained(str(folder / "w.npz"))
        assert torch.allclose(outputs(again), outputs(model), atol=1e-5), "timm reads it otherwise"  # noqa: S101
        return folder / "w.npz", outputs(model)

    return build


def hf(kind: str, config: str, output: Callable[[Any], Tensor], **args: Any) -> Any:
    """Return a builder of a folder of transformers.

    Args:
        kind: Its class.
        config: The class of its configuration.
        output: What of its result our model returns.
        **args: Fields of the configuration; ``shard``: the largest file.
    """
    shard = args.pop("shard", "50GB")

    def build(folder: Path) -> Built:
        model = save_hf(folder, kind, config, shard=shard, **args)
        with torch.no_grad():
            return folder, output(model(IMAGES))

    return build


def save_hf(folder: Path, kind: str, config: str, *, shard: str = "50GB", **args: Any) -> Any:
    """Save a model of transformers, in files of at most *shard*, and return it."""
    model = randomised(getattr(transformers, kind)(_hf_config(config, args)))
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def _hf_config(name: str, args: Mapping[str, Any]) -> Any:
    shape = {**HF_TINY, "num_labels": 5, **args}
    if name in ("SiglipConfig", "CLIPConfig"):
        text = {"vocab_size": 9, "hidden_size": 16, "intermediate_size": 8,
                "num_hidden_layers": 1, "num_attention_heads": 2}  # fmt: skip
        labels = shape.pop("num_labels")
        towers = {"vision_config": shape, "text_config": text}
        return getattr(transformers, name)(**towers, num_labels=labels)
    if name == "SwinConfig":
        shape = {"image_size": SIDE, "patch_size": 2, "embed_dim": 8, "depths": [1, 1],
                 "num_heads": [1, 2], "window_size": 2}  # fmt: skip
    if name.startswith("Dinov2"):
        shape.pop("intermediate_size")
    return getattr(transformers, name)(**shape)


def hf_bin(folder: Path) -> Built:
    """Save a sharded ``pytorch_model.bin`` as transformers 4 did."""
    logits = hf("ViTForImageClassification", "ViTConfig", _logits, shard="40KB")(folder)[1]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for name in set(index["weight_map"].values()):
        torch.save(load_file(folder / name), folder / _bin(name))
        (folder / name).unlink()
    index["weight_map"] = {key: _bin(name) for key, name in index["weight_map"].items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors.index.json").unlink()
    return folder, logits


def _bin(name: str) -> str:
    return name.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")


def tv(change: Callable[[nn.Module], None] = lambda _model: None, **args: Any) -> Any:
    """Return a builder of a file of torchvision's model, after *change* to it."""

    def build(folder: Path) -> Built:
        model = torchvision.models.VisionTransformer(
            **{"image_size": SIDE, "patch_size": 8, "num_layers": 2, "num_heads": HEADS,
               "hidden_dim": 48, "mlp_dim": 96, "num_classes": 5, **args}
        )  # fmt: skip
        change(model)
        randomised(model)
        torch.save({"model": model.state_dict()}, folder / "w.pth")
        return folder / "w.pth", outputs(model)

    return build


def _own_linear(model: nn.Module) -> None:
    model.heads = nn.Linear(48, 5)


def _own_sequential(model: nn.Module) -> None:
    model.heads = nn.Sequential(nn.Linear(48, 5))


def wrapped(prefix: str, inner: str = "", nest: str = "state_dict") -> Callable[[Path], Built]:
    """Return a builder of a file whose names have a wrapper's prefix, outside and inside."""

    def build(folder: Path) -> Built:
        model = vit()
        state = {
            prefix + name.replace("blocks.0.", f"blocks.0.{inner}"): tensor
            for name, tensor in model.state_dict().items()
        }
        torch.save({nest: state, "epoch": 3} if nest else state, folder / "w.pth")
        return folder / "w.pth", outputs(model)

    return build


def _logits(result: Any) -> Any:
    return result.logits


def _class_token(result: Any) -> Any:
    return result.last_hidden_state[:, 0]


def _pooled(result: Any) -> Any:
    return result.pooler_output


NAMED = {"num_heads": HEADS}
QUICK = {"pre_norm": True, "act_layer": "quick_gelu", "norm_layer": partial(nn.LayerNorm, eps=1e-5)}
REGISTERS = {"reg_tokens": 4, "no_embed_class": True, "init_values": 1.0, "num_classes": 0}
NO_TOKEN = {"class_token": False, "no_embed_class": True}
TOKEN = {"no_embed_class": True}
# fmt: off
OPENED: tuple[Case, ...] = (
    Case("DeiT", "timm", saved(lambda state: {"model": state}), NAMED),
    Case("DeiT, distilled", "timm", distilled, NAMED),
    Case("DeiT III", "timm", saved(deit3, init_values=1e-4, no_embed_class=True), NAMED),
    Case("MAE, pretrained", "timm", saved(mae, num_classes=0), NAMED),
    Case("MAE, fine-tuned", "timm", saved(global_pool="avg"), {**NAMED, "global_pool": "avg"}),
    Case("DINO", "timm", saved(num_classes=0), NAMED),
    Case("DINO, training checkpoint", "timm", dino, NAMED, "ema"),
    Case("DINOv2", "timm", saved(dinov2, init_values=1.0, num_classes=0), NAMED),
    Case("DINOv2 with registers", "timm", saved(dinov2, **REGISTERS), NAMED),
    Case(
        "DINOv2, giant",
        "timm",
        saved(
            dinov2_giant,
            mlp_layer=SwiGLUPacked,
            act_layer=nn.SiLU,
            mlp_ratio=16 / 3,
            init_values=1.0,
            num_classes=0,
        ),
        NAMED,
    ),
    Case("DINOv2 with its linear classifier", "timm", linear_head, NAMED),
    Case("timm folder", "timm", timm_folder()),
    Case("timm folder: registers", "timm", timm_folder(reg_tokens=1)),
    Case(
        "timm folder: QK-norm, RMSNorm",
        "timm",
        timm_folder(qk_norm=True, norm_layer="rmsnorm", global_pool="avg"),
    ),
    Case(
        "timm folder: MAP pooling",
        "timm",
        timm_folder(global_pool="map", class_token=False, act_layer="gelu_tanh"),
    ),
    Case("timm folder: CLIP", "timm", timm_folder("vit_base_patch32_clip_quickgelu_224")),
    Case("timm folder: axial RoPE", "timm", timm_folder("vit_small_patch16_rope_224")),
    Case("timm folder: axial RoPE and positions", "timm",
         timm_folder("vit_small_patch16_rope_ape_224")),
    Case("timm folder: DINOv3", "timm", timm_folder("vit_small_plus_patch16_dinov3")),
    Case("timm folder: DeiT, distilled", "timm", timm_folder("deit_tiny_distilled_patch16_224")),
    Case("big_vision .npz, class token", "google", npz("params/", **TOKEN)),
    Case("big_vision .npz, one array for all blocks", "google", npz("params/", scan=True, **TOKEN)),
    Case(
        "big_vision .npz, mean",
        "google",
        npz("params/", global_pool="avg", fc_norm=False, **NO_TOKEN),
    ),
    Case(
        "big_vision SigLIP .npz",
        "google",
        npz("params/img/", global_pool="map", num_classes=0, **NO_TOKEN),
    ),
    Case(
        "CLIP (OpenAI, open_clip)",
        "clip",
        saved(clip, num_classes=0, **QUICK),
        {**NAMED, "act_layer": "quick_gelu"},
    ),
    Case("MMPretrain ViT", "mmpretrain", mm(), NAMED),
    Case("MMPretrain DeiT III", "mmpretrain", mm(init_values=1e-4, no_embed_class=True), NAMED),
    Case("MMPretrain, mean", "mmpretrain", mm(global_pool="avg"), {**NAMED, "global_pool": "avg"}),
    Case("transformers ViT", "transformers", hf("ViTForImageClassification", "ViTConfig", _logits)),
    Case("transformers ViT, without a head", "transformers", hf("ViTModel", "ViTConfig", _pooled)),
    Case(
        "transformers ViT, sharded safetensors",
        "transformers",
        hf("ViTForImageClassification", "ViTConfig", _logits, shard="40KB"),
    ),
    Case("transformers ViT, sharded .bin", "transformers", hf_bin),
    Case(
        "transformers DeiT", "transformers", hf("DeiTForImageClassification", "DeiTConfig", _logits)
    ),
    Case(
        "transformers DeiT, distilled",
        "transformers",
        hf("DeiTForImageClassificationWithTeacher", "DeiTConfig", _logits),
    ),
    Case(
        "transformers ViT-MAE",
        "transformers",
        hf("ViTMAEModel", "ViTMAEConfig", _class_token, mask_ratio=0.0),
    ),
    Case(
        "transformers ViT-MSN",
        "transformers",
        hf("ViTMSNForImageClassification", "ViTMSNConfig", _logits),
    ),
    Case(
        "transformers DINOv2",
        "transformers",
        hf("Dinov2ForImageClassification", "Dinov2Config", _logits),
    ),
    Case(
        "transformers DINOv2, giant",
        "transformers",
        hf("Dinov2Model", "Dinov2Config", _pooled, use_swiglu_ffn=True),
    ),
    Case(
        "transformers DINOv2 with registers",
        "transformers",
        hf("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", _logits),
    ),
    Case(
        "transformers DINOv3", "transformers",
        hf("DINOv3ViTModel", "DINOv3ViTConfig", _pooled, num_register_tokens=4),
    ),
    Case(
        "transformers DINOv3, SwiGLU", "transformers",
        hf("DINOv3ViTModel", "DINOv3ViTConfig", _pooled, use_gated_mlp=True, hidden_act="silu"),
    ),
    Case(
        "transformers CLIP, image tower",
        "transformers",
        hf("CLIPVisionModel", "CLIPVisionConfig", _pooled),
    ),
    Case(
        "transformers SigLIP, image tower",
        "transformers",
        hf("SiglipVisionModel", "SiglipVisionConfig", _pooled),
    ),
    Case(
        "transformers SigLIP, classifier",
        "transformers",
        hf("SiglipForImageClassification", "SiglipConfig", _logits),
    ),
    Case("torchvision", "torchvision", tv(), NAMED),
    Case("torchvision, pre-logits", "torchvision", tv(representation_size=24), NAMED),
    Case("torchvision, `heads` replaced by a Linear", "torchvision", tv(_own_linear), NAMED),
    Case("torchvision, `heads` of one's own", "torchvision", tv(_own_sequential), NAMED),
    Case("DDP", "timm", wrapped("module."), NAMED),
    Case("torch.compile", "timm", wrapped("_orig_mod.", nest=""), NAMED),
    Case("FSDP", "timm", wrapped("_fsdp_wrapped_module.", "_fsdp_wrapped_module."), NAMED),
    Case("activation checkpointing", "timm", wrapped("", "_checkpoint_wrapped_module."), NAMED),
    Case("Lightning", "timm", wrapped("model."), NAMED),
    Case("a trainer with other names", "timm", wrapped("net.image_encoder."), NAMED),
)
# fmt: on


@contextmanager
def opened_cases() -> Iterator[Iterator[tuple[Case, Path, Tensor]]]:
    """Yield every case, where it was saved, and the logits of its program."""
    with tempfile.TemporaryDirectory() as folder:

        def build() -> Iterator[tuple[Case, Path, Tensor]]:
            for index, case in enumerate(OPENED):
                place = Path(folder) / str(index)
                place.mkdir()
                yield case, *case.build(place)

        yield build()
