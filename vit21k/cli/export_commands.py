"""`export-dataset`: manifests for other libraries."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from vit21k.cli import console
from vit21k.cli.classes_commands import PANEL
from vit21k.cli.options import DEFAULT_MANIFESTS, AsJson, ImageRoot, Manifests

_HOW_TO_READ = {
    "hf": 'datasets.load_dataset("{out}")',
    "imagefolder": 'datasets.load_dataset("imagefolder", '
    'data_files={{"train": "{out}/train/metadata.parquet"}})',
    "croissant": 'mlcroissant.Dataset("{out}/croissant.json").records("train")',
    "cleanlab": 'find_label_issues(labels=json.load(open("{out}/train_labels.json")), ...)',
    "plsc": "the two lists in `{out}`",
}


def register(app: typer.Typer) -> None:
    """Add `export-dataset` to *app*."""
    app.command("export-dataset", rich_help_panel=PANEL)(export_dataset_command)


def export_dataset_command(
    to: Annotated[
        Literal["hf", "imagefolder", "croissant", "plsc", "cleanlab"],
        typer.Option(help="What reads it."),
    ],
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="A new folder; default: export/<what reads it>."),
    ] = None,
    root: ImageRoot = None,
    as_json: AsJson = False,
) -> None:
    """Write the data set as other libraries read it; no picture is copied.

    hf: Parquet with paths and labels, and a dataset card. imagefolder: the same beside a link to
    the image tree, so that pictures are opened. croissant: Parquet and croissant.json. cleanlab:
    labels as lists. plsc: its two text lists.

    [bold]Examples[/bold]

      vit21k export-dataset --to hf --out in21k_hf

      vit21k export-dataset --to imagefolder --out in21k_images

      vit21k export-dataset --to croissant
    """
    folder = out or manifests / "export" / to
    num_rows = _export(to, manifests, folder, root)
    if as_json:
        console.print_json({"to": to, "out": str(folder), "num_rows": num_rows})
    counts = ", ".join(f"{count:,} in {name}" for name, count in num_rows.items())
    console.done(f"export-dataset: {counts}; in `{folder}`")
    console.note(f"read it with: {_HOW_TO_READ[to].format(out=folder)}")


def _export(to: str, manifests: Path, out: Path, root: Path | None) -> dict[str, int]:
    """Write the export; return the number of pictures of each split or list."""
    if to == "plsc":
        from vit21k.prep.lists import export_lists

        return export_lists(manifests, out)
    from vit21k.dataset_export.cleanlab import write_cleanlab
    from vit21k.dataset_export.croissant import write_croissant
    from vit21k.dataset_export.hugging_face import write_hf, write_imagefolder
    from vit21k.dataset_export.splits import Splits, open_splits

    writers: dict[str, Callable[[Splits, Path], object]] = {
        "hf": write_hf,
        "imagefolder": write_imagefolder,
        "croissant": write_croissant,
        "cleanlab": write_cleanlab,
    }
    splits = open_splits(manifests, out, root)
    writers[to](splits, out)
    return splits.num_rows
