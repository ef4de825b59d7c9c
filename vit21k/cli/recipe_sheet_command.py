"""`recipes sheet`."""

from pathlib import Path
from typing import Annotated

import typer

from vit21k.cli import console
from vit21k.cli.options import DEFAULT_MANIFESTS, AsJson, ImageRoot, Manifests

_Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe, or a path that ends in .yaml.")
]
_Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change a field; may be repeated."),
]
_Out = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A PNG to write.")]


def sheet_command(
    recipe: _Recipe,
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: _Out = Path("augmentation.png"),
    root: ImageRoot = None,
    pictures: Annotated[int, typer.Option(min=1, max=64, help="Rows of the sheet.")] = 8,
    draws: Annotated[int, typer.Option(min=1, max=64, help="Columns of the sheet.")] = 6,
    overrides: _Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Draw what a recipe's augmentation makes of training pictures, with their labels.

    The first column is the pictures as they are; the others are made by the code that trains,
    mixing included. The numbers under a mixed picture are the targets at its labels.

    [bold]Examples[/bold]

      vit21k recipes sheet pretrain_l16_in21k

      vit21k recipes sheet mine.yaml --set augment.mixup_alpha=0.8 --out mixed.png
    """
    from vit21k.atomic import atomic_file
    from vit21k.config.recipe import load_recipe
    from vit21k.training.contact_sheet import contact_sheet
    from vit21k.training.split_data import open_split_data

    loaded = load_recipe(recipe, overrides or [])
    data = open_split_data(manifests, root)
    sheet = contact_sheet(loaded, data.train, data.classes, num_pictures=pictures, num_draws=draws)
    with atomic_file(out) as file:
        sheet.save(file, "PNG")
    num_rows = min(pictures + pictures % 2, len(data.train))
    if as_json:
        console.print_json({"file": str(out), "pictures": num_rows, "draws": draws})
    console.done(
        f"recipes sheet: {num_rows} pictures, {draws} draws of each -> `{out}`; "
        f"next: `vit21k train --recipe {recipe}`"
    )
