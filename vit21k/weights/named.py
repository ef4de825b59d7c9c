"""What the name of an architecture says that its tensors do not show."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vit21k.errors import CheckpointError
from vit21k.models.variants import SIZES, VARIANTS

# What an image size, a pretrained tag or the name of the pretraining adds to a name.
_SUFFIX = re.compile(r"(\.\w[\w.]*)?$")
_SIZE = re.compile(r"(_\d{2,4})?(_in21k|_miil|_miil_in21k)?$")
# `vit_base`, `mae_vit_base_patch16`, `deit_base_patch16`: DINO, MAE, DeiT and timm.
_PLAIN = re.compile(
    r"(?:mae_)?(?:vit|deit)_(tiny|small|base|large|huge|giant|gigantic)"
    r"(?:_patch\d+)?(?:_dec\d+d\d+b)?(?:_dinov2)?"
)
_TORCHVISION = {"vit_b": "base", "vit_l": "large", "vit_h": "huge"}
_TORCHVISION_NAME = re.compile(r"(vit_[blh])_\d\d(?:_swag)?")
# Other names of timm's for what our network computes -> width, heads and GELU.  Their widths do
# not decide their heads: 768 has 12 or 16.
_OTHERS: Mapping[str, tuple[int, int, str]] = {
    "vit_base_patch16_gap": (768, 16, "gelu"),
    "vit_base_patch16_plus": (896, 14, "gelu"),
    "vit_base_patch16_siglip_gap": (768, 12, "gelu"),
    "vit_base_patch32_plus": (896, 14, "gelu"),
    "vit_base_patch32_siglip_gap": (768, 12, "gelu_tanh"),
    "vit_betwixt_patch16_gap": (640, 10, "gelu"),
    "vit_giant_patch16_gap": (1408, 16, "gelu"),
    "vit_giantopt_patch16_siglip_gap": (1536, 16, "gelu_tanh"),
    "vit_huge_patch14_gap": (1280, 16, "gelu"),
    "vit_huge_patch16_gap": (1280, 16, "gelu"),
    "vit_intern300m_patch14": (1024, 16, "gelu"),
    "vit_large_patch16_siglip_gap": (1024, 16, "gelu"),
    "vit_medium_patch16_gap": (512, 8, "gelu"),
    "vit_small_patch16_36x1": (384, 6, "gelu"),
    "vit_so400m_patch14_siglip_gap": (1152, 16, "gelu"),
    "vit_so400m_patch16_siglip_gap": (1152, 16, "gelu_tanh"),
    "eva_large_patch14": (1024, 16, "gelu"),
    "test_vit": (64, 2, "gelu"),
}


def known_architecture(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], str | None]:
    """Return what the ``architecture`` of *config* says, and its name if it is not one of ours.

    Args:
        config: In the words of timm's ``config.json``.
        tensors: Under our names.

    Raises:
        CheckpointError: The tensors are those of another one.
    """
    told = config.get("architecture")
    if not isinstance(told, str) or told.lower() == "visiontransformer":  # timm's class
        return {}, None
    found = _of_name(told)
    if found is None:
        return {}, told
    width, known = found
    args = config.get("model_args")
    resized = isinstance(args, Mapping) and "embed_dim" in args
    patch = tensors.get("patch_embed.proj.weight")
    if width and not resized and patch is not None and patch.shape[:1] != (width,):
        raise CheckpointError(
            f"the tensors are not those of `{told:.60}`, which is named beside them: "
            f"{patch.shape[:1][0] if patch.ndim else 0} wide, not {width}"
        )
    if "heads" not in known:
        averages = "fc_norm.weight" in tensors or "cls_token" not in tensors
        known = {**known, "global_pool": "avg" if averages else "token"}
    return known, None


def _of_name(told: str) -> tuple[int | None, dict[str, Any]] | None:
    """Return width and hidden arguments of the model of this name; None: there is none here."""
    base = _SIZE.sub("", _SUFFIX.sub("", told))
    for name in VARIANTS:
        if _SIZE.sub("", name) == base and "heads" in VARIANTS[name]:
            return None, {"heads": VARIANTS[name]["heads"], "act_layer": "gelu"}
        if _SIZE.sub("", name) == base:
            return _said(VARIANTS[name]["embed_dim"], VARIANTS[name]["num_heads"])
    if base in _OTHERS:
        return _said(*_OTHERS[base])
    match = _PLAIN.fullmatch(base)
    size = match[1] if match else None
    if match := _TORCHVISION_NAME.fullmatch(_SUFFIX.sub("", told)):
        size = _TORCHVISION[match[1]]
    if size is None:
        return None
    return _said(int(SIZES[size]["embed_dim"]), int(SIZES[size]["num_heads"]))


def _said(width: int, num_heads: int, activation: str = "gelu") -> tuple[int, dict[str, Any]]:
    return width, {"num_heads": num_heads, "act_layer": activation, "norm_eps": 1e-6}
