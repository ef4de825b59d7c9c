"""`import-md5sum`, `export-lists`: to and from the text files of PLSC's procedure."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vit21k.cli import console
from vit21k.cli.data_commands import PANEL
from vit21k.cli.options import DEFAULT_MANIFESTS, AsJson, LabelSource, Manifests, for_manifests


def register(app: typer.Typer) -> None:
    """Add the list commands to *app*."""
    app.command("import-md5sum", rich_help_panel=PANEL)(import_md5sum_command)
    app.command("export-lists", rich_help_panel=PANEL)(export_lists_command)


def import_md5sum_command(
    md5sum: Annotated[Path, typer.Argument(metavar="FILE", help="What md5sum printed.")],
    manifests: Manifests = DEFAULT_MANIFESTS,
    strip_prefix: Annotated[
        str, typer.Option(metavar="DIR", help="Folder to take off the paths; all must begin so.")
    ] = "",
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", envvar="VIT21K_ROOT", help="Where the images are."),
    ] = None,
    label_from: LabelSource = None,
    as_json: AsJson = False,
) -> None:
    """Take over digests that md5sum has made: FILE -> digests.parquet.

    The order of its lines is kept. Sizes and times are not in FILE and stay empty. `./` at the
    front of a path is taken off; a path that comes twice is refused.

    [bold]Examples[/bold]

      vit21k import-md5sum md5sum.txt --strip-prefix /data/ImageNet21K --root /data/ImageNet21K
    """
    from vit21k.prep.md5sum import import_md5sum

    summary = import_md5sum(
        md5sum, manifests, strip_prefix=strip_prefix, root=root, label_from=label_from
    )
    if summary.num_empty:
        console.warn(
            f"{summary.num_empty:,} lines have the MD5 of an empty file; they are kept, and count "
            "as one picture"
        )
    if root is None:
        console.note("where the images are is not known; commands that open them need `--root`")
    if as_json:
        console.print_json(asdict(summary))
    console.done(f"import-md5sum: {summary.num_files:,} lines are {summary.num_files:,} files")
    console.note(f"next: `{for_manifests('vit21k relabel', manifests)}`")


def export_lists_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the lists go; default: beside the manifests."),
    ] = None,
    per_class: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Take the first so many single-label pictures of each class for the dummy list; "
            "default: what make-val chose, or 20.",
        ),
    ] = None,
    allow_blanks: Annotated[
        bool, typer.Option("--allow-blanks", help="Write names with blanks too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write PLSC's lists: image_all_list.txt and image_dummy_val_list.txt.

    A split made with --holdout gives image_train_list.txt and image_val_list.txt instead.

    Pictures in archives are listed as if each archive were unpacked to a folder of its name, where
    PLSC's reader expects them.

    [bold]Examples[/bold]

      vit21k export-lists --out lists

      vit21k export-lists --per-class 20
    """
    from vit21k.prep.lists import export_lists

    out = out or manifests
    _say_if_packed(manifests)
    num_lines = export_lists(manifests, out, per_class=per_class, allow_blanks=allow_blanks)
    if as_json:
        console.print_json({str(out / name): count for name, count in num_lines.items()})
    console.done(
        "export-lists: "
        + ", ".join(f"{count:,} lines in `{out / name}`" for name, count in num_lines.items())
    )


def _say_if_packed(manifests: Path) -> None:
    from vit21k.manifest.reader import open_manifest
    from vit21k.manifest.schema import IMAGES

    archives = open_manifest(manifests, IMAGES).read(["archive"])["archive"]
    if num_packed := len(archives) - archives.null_count:
        console.warn(
            f"{num_packed:,} pictures lie in archives: unpack each to a folder of its name before "
            "PLSC reads the lists"
        )
