"""`report`: one HTML page on everything the manifests know."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.data_commands import PANEL
from vit21k.cli.options import DEFAULT_MANIFESTS, AsJson, ImageRoot, Manifests, for_manifests


def register(app: typer.Typer) -> None:
    """Add `report` to *app*."""
    app.command("report", rich_help_panel=PANEL)(report_command)


def report_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page; default: report.html beside the manifests."),
    ] = None,
    root: ImageRoot = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "vit21k report",
    as_json: AsJson = False,
) -> None:
    """Show what was found, in numbers, charts and pictures: manifests -> report.html.

    One file of at most 5 MB that opens from disk, without network or scripts. It is made of what is
    there: leaks and near-duplicates are shown once they have been looked for.

    [bold]Examples[/bold]

      vit21k report

      vit21k report --manifests in21k_manifests --out in21k.html --title "ImageNet-21K, fall 2011"
    """
    from vit21k.report.page import write_report

    summary = write_report(manifests, out or manifests / "report.html", root=root, title=title)
    if as_json:
        console.print_json(asdict(summary))
    console.done(
        f"report: {summary.num_pictures:,} pictures, {summary.num_groups:,} under several classes "
        f"({summary.num_groups_shown:,} shown, "
        f"{summary.num_groups - summary.num_groups_shown:,} not), in `{summary.path}` "
        f"({summary.num_bytes / 1e6:.2f} MB)"
    )
    if not summary.do_counts_add_up:
        console.warn("the counts of the manifests do not add up; the page shows which")
    if summary.num_unread:
        console.warn(
            f"{summary.num_unread:,} images could not be read and are not shown: mount their disk, "
            "or say where the image tree is now with `--root`"
        )
    if summary.num_unread or not summary.do_counts_add_up:
        raise typer.Exit(errors.EXIT_BAD_DATA)
    review = for_manifests("vit21k review", manifests)
    console.note(f"next: open it in a browser; `{review}` goes through the doubtful ones")
