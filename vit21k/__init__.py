"""ImageNet-21K, cleaned and split, and a Vision Transformer trained on it.

Names are imported when they are first used, so that `import vit21k` needs neither torch nor time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit21k.checkpoint.load import load_model
    from vit21k.inference.predict import predict
    from vit21k.manifest.api import read_manifest
    from vit21k.models.registry import get_model, list_models

    __version__: str

_HOME = {
    "get_model": "vit21k.models.registry",
    "list_models": "vit21k.models.registry",
    "load_model": "vit21k.checkpoint.load",
    "predict": "vit21k.inference.predict",
    "read_manifest": "vit21k.manifest.api",
}

__all__ = ["get_model", "list_models", "load_model", "predict", "read_manifest"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 (more than the rest takes)

        return version("vit21k")
    if name not in _HOME:
        raise AttributeError(f"module `vit21k` has no attribute `{name}`")
    return getattr(import_module(_HOME[name]), name)
