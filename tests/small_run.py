"""A small model and its images, for the commands that use a trained model."""

import pyarrow as pa

from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import ManifestHeader
from vit21k.manifest.schema import IMAGES, TRAIN, VAL
from vit21k.manifest.writer import write_manifest
from vit21k.models.registry import get_model, model_args

CLASSES = ClassList(("ant", "bee", "cat"), ("an ant", None, "a cat"))
NAME = "vit_tiny_patch16_224"
SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


def write_manifests(folder, rows, classes, *, options=None):
    """Write *rows* as images, train and val of *folder*; their tree is next to it."""
    table = pa.Table.from_pylist(rows, schema=IMAGES.schema)
    for kind in (IMAGES, TRAIN, VAL):
        header = ManifestHeader(
            algorithm="md5",
            root=str(folder.parent / "tree"),
            classes=classes.fingerprint,
            options=(options or {"split": "dummy"}) if kind is not IMAGES else {},
        )
        write_manifest(table, kind, folder, header, classes)


def save_run(
    path, *, classes=CLASSES, loss_kind="sigmoid", mode="squash", resize=None, ema=None, **args
):
    """Save a checkpoint of a small model to the run *path*, which is returned; needs torch."""
    import torch  # noqa: PLC0415

    from vit21k.checkpoint.model_folder import EvalSettings, model_config  # noqa: PLC0415
    from vit21k.checkpoint.store import save_checkpoint  # noqa: PLC0415

    args = {**SMALL, **args}
    torch.manual_seed(0)
    model = get_model(NAME, num_classes=len(classes), **args)
    settings = EvalSettings(
        img_size=args["img_size"],
        mode=mode,
        resize=resize,
        interpolation="bilinear",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    save_checkpoint(
        path,
        5,
        model_state=model.state_dict(),
        model_config=model_config(NAME, model_args(NAME, **args), classes, settings, loss_kind),
        optimizer_state={},
        state={},
        keep_last=1,
        ema_state=ema,
    )
    return path
