"""ImageNet-21K, cleaned and split, and a Vision Transformer trained on it.

Names are imported when they are first used, so that `import vit21k` needs neither torch nor time.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit21k.manifest.api import read_manifest

__version__ = version("vit21k")

_HOME = {
    "read_manifest": "vit21k.manifest.api",
}

__all__ = ["read_manifest"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module `vit21k` has no attribute `{name}`")
    return getattr(import_module(_HOME[name]), name)
