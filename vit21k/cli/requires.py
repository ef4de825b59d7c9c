"""Commands that need an optional dependency say so before they start."""

from importlib import import_module

from vit21k.errors import MissingExtraError

INSTALL_TRAIN = "pip install 'vit21k[train]'"
INSTALL_SERVE = "pip install 'vit21k[serve]'"


def require_torch(command: str) -> None:
    """Check that *command* can import torch and safetensors.

    Raises:
        MissingExtraError: One of them is not installed, or is broken.
    """
    try:
        for name in ("torch", "safetensors"):
            import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"`vit21k {command}` needs {error.name}, which is not installed",
            hint=f"install it with: {INSTALL_TRAIN}",
        ) from error
    except (ImportError, OSError) as error:  # a shared library is missing, or is another version's
        raise MissingExtraError(
            f"`vit21k {command}` needs torch, which cannot be imported: {error}",
            hint=f"`vit21k doctor` looks closer; or install it anew: {INSTALL_TRAIN}",
        ) from error


def require_serving(command: str, *, install: str = INSTALL_SERVE) -> None:
    """Check that *command* can import the web server; *install* installs it.

    Raises:
        MissingExtraError: A part of it is not installed.
    """
    try:
        for name in ("starlette", "uvicorn"):
            import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"`vit21k {command}` needs {error.name}, which is not installed",
            hint=f"install it with: {install}",
        ) from error
