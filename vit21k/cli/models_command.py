"""`models`: list the architectures."""

import typer

from vit21k.cli import console
from vit21k.cli.model_options import PANEL
from vit21k.cli.options import AsJson


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("models", rich_help_panel=PANEL)(models_command)


def models_command(as_json: AsJson = False) -> None:
    """List the architectures: parameters, and multiplications of one image at its size.

    With a head of 1,000 classes.  `model.name` of a recipe takes these names; the
    fields beside it change their sizes.

    [bold]Examples[/bold]

      vit21k models

      vit21k models --json
    """
    from vit21k.models.cost import macs_per_image, num_params
    from vit21k.models.registry import list_models, model_args

    rows = [{"name": name, **model_args(name)} for name in list_models()]
    for row in rows:
        row |= {"num_params": num_params(row), "macs_per_image": macs_per_image(row)}
    if as_json:
        console.print_json(rows)
        return
    console.print_table(
        ["name", "M params", "GMACs", "pixels", "patch"],
        [
            [
                row["name"],
                f"{row['num_params'] / 1e6:.2f}",
                f"{row['macs_per_image'] / 1e9:.2f}",
                str(row["img_size"]),
                str(row["patch_size"]),
            ]
            for row in rows
        ],
    )
