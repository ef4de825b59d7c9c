"""`models`: list the architectures, and the formats their weights are read from."""

from typing import Annotated, Any

import typer

from vit21k.cli import console
from vit21k.cli.model_options import PANEL
from vit21k.cli.options import AsJson


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("models", rich_help_panel=PANEL)(models_command)


def models_command(
    img_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="PIXELS", help="Count at this size; default: the name's."),
    ] = None,
    formats: Annotated[
        bool, typer.Option("--formats", help="List the formats that weights are read from.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the architectures: parameters, multiplications of one image, memory, source, formats.

    With a head of 1,000 classes.  "MB kept" is what training keeps of one image in float32 until
    the backward pass.  "formats" are those in which weights of the model are read: `--init`,
    `predict`, `eval` and `export` take them.  `model.name` of a recipe takes these names; the
    fields beside it change their sizes.

    [bold]Examples[/bold]

      vit21k models

      vit21k models --img-size 384 --json

      vit21k models --formats
    """
    if formats:
        _list_formats(as_json=as_json)
        return
    rows = model_rows(img_size)
    if as_json:
        console.print_json(rows)
        return
    console.print_table(
        ["name", "M params", "GMACs", "MB kept", "pixels", "patch", "source", "formats"],
        [
            [
                row["name"],
                f"{row['num_params'] / 1e6:.2f}",
                f"{row['macs_per_image'] / 1e9:.2f}",
                f"{row['activation_bytes_per_image'] / 1e6:,.0f}",
                str(row["img_size"]),
                str(row["patch_size"]),
                row["source"],
                ", ".join(row["formats"]),
            ]
            for row in rows
        ],
    )


def model_rows(img_size: int | None = None) -> list[dict[str, Any]]:
    """Return every architecture with its arguments and what it costs, at *img_size* or its own."""
    from vit21k.models.cost import activation_bytes_per_image, macs_per_image, num_params
    from vit21k.models.registry import list_models, model_args
    from vit21k.models.variants import formats_of, source_of

    rows = []
    for name in list_models():
        args = model_args(name, **({} if img_size is None else {"img_size": img_size}))
        rows.append(
            {
                "name": name,
                **args,
                "num_params": num_params(args),
                "macs_per_image": macs_per_image(args),
                "activation_bytes_per_image": activation_bytes_per_image(args, 4),
                "source": source_of(name),
                "formats": formats_of(name),
            }
        )
    return rows


def _list_formats(*, as_json: bool) -> None:
    from vit21k.models.variants import FORMATS

    if as_json:
        console.print_json(FORMATS)
    else:
        console.print_table(["format", "what is read"], [[*row] for row in FORMATS.items()])
