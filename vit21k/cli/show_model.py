"""`models show PATH`: what a checkpoint, of vit21k or of another program, is opened as."""

from dataclasses import asdict
from typing import Any

from vit21k.checkpoint.load import open_weights
from vit21k.cli import console
from vit21k.cli.options import ModelOptions, local_copy
from vit21k.models.cost import macs_per_image, num_params
from vit21k.models.registry import model_args

_MOST_CLASSES = 3


def show_model(path: str, options: ModelOptions, *, as_json: bool) -> None:
    """Print format, architecture, preprocessing and classes of the checkpoint at *path*."""
    opened = open_weights(local_copy(path), options.preprocessing(), options.choice())
    card = opened.card
    usual = model_args(card.name)
    shown: dict[str, Any] = {
        "format": opened.format,
        "model": card.name,
        "args": {key: value for key, value in card.args.items() if value != usual[key]},
        "num_params": num_params(card.args),
        "macs_per_image": macs_per_image(card.args),
        "preprocessing": asdict(card.eval_settings),
        "num_classes": len(card.classes),
        "classes_fingerprint": card.classes.fingerprint,
        "first_classes": list(card.classes.wnids[:_MOST_CLASSES]),
        "activation": card.activation,
        "warnings": list(card.warnings),
    }
    if as_json:
        console.print_json(shown)
        return
    for warning in shown.pop("warnings"):
        console.warn(warning)
    rows = [
        [key, value if isinstance(value, str) else _text(value)] for key, value in shown.items()
    ]
    console.print_table(["field", "value"], rows)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
