"""The ``README.md`` of an export: what it is, how to load it, what its pictures must look like."""

from collections.abc import Sequence

from vit21k.checkpoint.model_folder import EvalSettings, ModelCard
from vit21k.model_export.limits import Target

_LOAD: dict[Target, str] = {
    "timm": """model = timm.create_model("local-dir:FOLDER", pretrained=True)
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))""",
    "safetensors": 'vit21k.load_model("FOLDER")',
    "transformers": """transformers.AutoModelForImageClassification.from_pretrained("FOLDER")
transformers.AutoImageProcessor.from_pretrained("FOLDER", backend="pil")""",
    "torchvision": """model = torchvision.models.VisionTransformer(
    image_size={img_size}, patch_size={patch_size}, num_layers={depth}, num_heads={num_heads},
    hidden_dim={embed_dim}, mlp_dim={mlp_dim}, num_classes={num_classes},
    representation_size={representation_size},
)
model.load_state_dict(safetensors.torch.load_file("FOLDER/model.safetensors"))""",
    "npz": 'vit_jax.checkpoint.load("FOLDER/model.npz")',
    "torch-export": 'torch.export.load("FOLDER/model.pt2").module()(images)',
    "onnx": """session = onnxruntime.InferenceSession("FOLDER/model.onnx")
session.run(None, {{"pixel_values": images}})""",
}
_INPUT = (
    "RGB pictures, {resizing}, {interpolation}; values 0 to 1 minus {mean}, divided by {std}. "
    "An array of images is `[batch, {in_chans}, {img_size}, {img_size}]`{last}. "
    "The {activation} of the logits are probabilities."
)
_LICENCE = (
    "The names of classes with a wnid come from WordNet 3.0, Copyright 2006 by Princeton "
    "University, under its licence (<https://wordnet.princeton.edu/license-and-commercial-use>). "
    "Weights that were trained on ImageNet may be used as its terms of access allow: for "
    "non-commercial research and education. Weights of others keep their own licence."
)


def _resizing(settings: EvalSettings) -> str:
    size, resize = settings.img_size, settings.resize or settings.img_size
    if settings.mode == "squash":
        resized = f"resized to {resize} x {resize} pixels"
        if resize == size:
            return resized
    else:
        resized = f"the short side resized to {resize} pixels"
    rounded = "rounded down" if settings.margin == "floor" else "rounded to the even number"
    return f"{resized}, then the middle {size} x {size} (half of an odd margin is {rounded})"


def readme(card: ModelCard, to: Target, notes: Sequence[str]) -> str:
    """Return the text for the export *to* of the model of *card*."""
    settings, args = card.eval_settings, card.args
    words = {
        **args,
        "mlp_dim": int(args.get("embed_dim", 0) * args["mlp_ratio"]),
    }
    description = _INPUT.format(
        resizing=_resizing(settings),
        interpolation=settings.interpolation,
        mean=settings.mean,
        std=settings.std,
        in_chans=args["in_chans"],
        img_size=settings.img_size,
        last=", channels last for Google's code" if to == "npz" else "",
        activation=card.activation,
    )
    sections = [
        f"# {card.name}, for {to}",
        (
            f"Exported by vit21k. {len(card.classes):,} classes, fingerprint "
            f"`{card.classes.fingerprint[:16]}`; `config.json` lists them (`label_names`) and "
            "every argument of the model."
        ),
        f"## Load\n\n```python\n{_LOAD[to].format(**words)}\n```",
        f"## Pictures\n\n{description}",
        *(["## Notes\n\n" + "\n".join(f"- {note}" for note in notes)] if notes else []),
        f"## Licence\n\n{_LICENCE}",
    ]
    return "\n\n".join(sections) + "\n"
