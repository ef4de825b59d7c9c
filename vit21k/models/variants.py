"""The published sizes of the models; needs no torch."""

from collections.abc import Mapping
from typing import Any

SIZES: Mapping[str, Mapping[str, float]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
    "giant": {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11},
    "gigantic": {"embed_dim": 1664, "depth": 48, "num_heads": 16, "mlp_ratio": 64 / 13},
}

_PATCH_SIZES = {
    "tiny": (16,),
    "small": (32, 16, 8),
    "base": (32, 16, 8),
    "large": (32, 16, 14),
    "huge": (14,),
    "giant": (14,),
    "gigantic": (14,),
}

# Name of the ResNet and stride of the whole -> size, and blocks in each of its stages.
_HYBRIDS = {
    "small_r26_s32": ("small", [2, 2, 2, 2]),
    "base_r26_s32": ("base", [2, 2, 2, 2]),
    "base_r50_s16": ("base", [3, 4, 9]),
    "large_r50_s32": ("large", [3, 4, 6, 3]),
}

_IMG_SIZES = (224, 384)

_PITS: Mapping[str, Mapping[str, Any]] = {
    "ti": {"base_dims": [32, 32, 32], "depth": [2, 6, 4], "heads": [2, 4, 8]},
    "xs": {"base_dims": [48, 48, 48], "depth": [2, 6, 4], "heads": [2, 4, 8]},
    "s": {"base_dims": [48, 48, 48], "depth": [2, 6, 4], "heads": [3, 6, 12]},
    "b": {
        "base_dims": [64, 64, 64],
        "depth": [3, 6, 4],
        "heads": [4, 8, 16],
        "patch_size": 14,
        "stride": 7,
    },
}

_SOURCES = {
    "tiny": "arXiv:2106.10270",
    "small": "arXiv:2106.10270",
    "giant": "arXiv:2106.04560",
    "gigantic": "arXiv:2106.04560",
}

FORMATS: Mapping[str, str] = {
    "vit21k": "run, checkpoint or model folder of vit21k",
    "timm": "timm: folder, .safetensors or .pth, hybrids and PiT included",
    "torchvision": "torchvision `vit_*`: .pth or .safetensors",
    "transformers": "transformers ViT: folder, in the names of version 4 or 5",
    "google": "Google's .npz, published or Linen names, hybrids and mean pooling included",
    "plsc": "PLSC .pdparams",
    "paddlevit": "PaddleViT .pdparams, and paddle_pit's",
    "naver": "naver-ai PiT .pth",
}
"""Formats that are read, and what each is."""


def source_of(name: str) -> str:
    """Return the paper that the *name* model comes from."""
    family, size, *rest = name.split("_")
    if family == "pit":
        return "arXiv:2103.16302"
    if rest[0].startswith("r") and size != "base":
        return "arXiv:2106.10270"
    return _SOURCES.get(size, "arXiv:2010.11929")


def formats_of(name: str) -> list[str]:
    """Return the formats, of `FORMATS`, in which weights of the *name* model are read."""
    if name.startswith("pit"):
        return ["vit21k", "timm", "naver", "paddlevit"]
    if VARIANTS[name].get("resnet_layers"):
        return ["vit21k", "timm", "google"]
    return [format_ for format_ in FORMATS if format_ != "naver"]


def _variants() -> dict[str, dict[str, Any]]:
    """Return the arguments that make a name what it is, from small to large."""
    plain = {
        f"vit_{size}_patch{patch_size}_{img_size}": {
            **widths,
            "patch_size": patch_size,
            "img_size": img_size,
        }
        for size, widths in SIZES.items()
        for patch_size in _PATCH_SIZES[size]
        for img_size in _IMG_SIZES
    }
    hybrids = {
        f"vit_{name}_{img_size}": {
            **SIZES[size],
            "patch_size": 1,
            "img_size": img_size,
            "resnet_layers": layers,
        }
        for name, (size, layers) in _HYBRIDS.items()
        for img_size in _IMG_SIZES
    }
    pits = {
        f"pit_{size}{'_distilled' * distilled}_224": {**args, "distilled": distilled}
        for size, args in _PITS.items()
        for distilled in (False, True)
    }
    return {**plain, **hybrids, **pits}


VARIANTS: Mapping[str, Mapping[str, Any]] = _variants()
"""Name -> the arguments that make it what it is, from small to large."""
