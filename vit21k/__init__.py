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
    from vit21k.near.leaks import find_leaks as leaks
    from vit21k.prep.hash_tree import hash_tree as hash  # noqa: A004 (the name of the command)
    from vit21k.prep.relabel import relabel
    from vit21k.prep.split import make_val

    __version__: str

_HOME = {
    "get_model": "vit21k.models.registry",
    "hash": "vit21k.prep.hash_tree",
    "leaks": "vit21k.near.leaks",
    "list_models": "vit21k.models.registry",
    "load_model": "vit21k.checkpoint.load",
    "make_val": "vit21k.prep.split",
    "predict": "vit21k.inference.predict",
    "read_manifest": "vit21k.manifest.api",
    "relabel": "vit21k.prep.relabel",
}
_NAMES = {"hash": "hash_tree", "leaks": "find_leaks"}
"""Functions whose names in their modules are not those of their commands."""

__all__ = [
    "get_model",
    "hash",
    "leaks",
    "list_models",
    "load_model",
    "make_val",
    "predict",
    "read_manifest",
    "relabel",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 (more than the rest takes)

        return version("vit21k")
    if name not in _HOME:
        raise AttributeError(f"module `vit21k` has no attribute `{name}`")
    return getattr(import_module(_HOME[name]), _NAMES.get(name, name))
