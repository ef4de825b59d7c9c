"""`recipes list | show | check | fields | sheet`."""

from pathlib import Path
from typing import Annotated

import typer

from vit21k.cli import console
from vit21k.cli.options import DEFAULT_MANIFESTS, AsJson, ImageRoot, Manifests, Overrides
from vit21k.errors import UsageError

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe, or a path that ends in .yaml.")
]
# Fields of the section `model` that are not arguments of the network.
_FIRST_WEIGHTS = ("init_scheme", "head_init", "head_init_std", "head_bias_init")


def list_recipes(
    word: Annotated[
        str,
        typer.Argument(help="Only recipes with this in their name or source: pit, in21k, MindCV."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Print the shipped recipes with their source and a summary.

    [bold]Examples[/bold]

      vit21k recipes list

      vit21k recipes list finetune

      vit21k recipes list --json | jq -r '.[].reached_there'
    """
    from vit21k.recipe.load import by_source, header_of

    found = list(by_source(word))
    if as_json:
        console.print_json({name: _in_json(source, name) for source, name in found})
        return
    if not found:
        raise UsageError(f"no recipe has `{word}` in its name", hint="`vit21k recipes list`")
    rows, last = [], ""
    for source, name in found:
        rows.append([source if source != last else "", name, header_of(name).summary])
        last = source
    console.print_table(["from", "recipe", "what it is"], rows)
    console.note(
        f"{len(found)} recipes; next: `vit21k recipes show {found[0][1]}` shows its fields, "
        f"`vit21k train --recipe {found[0][1]}` trains"
    )


def _in_json(source: str, name: str) -> dict[str, str]:
    from vit21k.recipe.load import header_of, load_recipe

    header = header_of(name)
    return {
        "from": source,
        "summary": header.summary,
        "stage": load_recipe(name).stage,
        "source": header.notes.get("Source", ""),
        "reached_there": header.notes.get("Reached there", ""),
        "verified_here": header.notes.get("Verified here", ""),
        "command": header.command,
    }


def show_recipe(recipe: RecipeName, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print a complete recipe: with its base, defaults and changes.

    [bold]Examples[/bold]

      vit21k recipes show pretrain_l16_in21k

      vit21k recipes show tiny --set optim.lr=1e-3 > mine.yaml
    """
    from vit21k.recipe.load import comments_of, dump_recipe, load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if as_json:
        console.print_json(loaded.model_dump(mode="json"))
        return
    comments = comments_of(recipe)
    if overrides:
        comments += ["", f"Changed: {', '.join(overrides)}"]
    for line in comments:
        console.print_lines(f"# {line}".rstrip())
    console.print_lines(dump_recipe(loaded))


def check_command(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Check whether a recipe is valid; list all errors.

    [bold]Examples[/bold]

      vit21k recipes check mine.yaml

      vit21k recipes check pretrain_l16_in21k --set model.img_size=256
    """
    from vit21k.models.registry import model_args
    from vit21k.recipe.load import header_of, load_recipe, shipped_recipes

    model = load_recipe(recipe, overrides or []).model
    given = model.model_dump(exclude={"name", "freeze", "pos_embed_resize", *_FIRST_WEIGHTS})
    model_args(model.name, **{name: value for name, value in given.items() if value is not None})
    own = header_of(recipe).command if recipe in shipped_recipes() else ""
    command = own if own and not overrides else f"vit21k train --recipe {recipe}"
    console.done(f"recipes check: `{recipe}` is valid; next: `{command}`")


def fields_command(
    section: Annotated[
        str, typer.Argument(help="Only fields with this prefix: optim, data.crop.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Print every field of a recipe: values, default, meaning.

    [bold]Examples[/bold]

      vit21k recipes fields

      vit21k recipes fields optim
    """
    from vit21k.recipe.load import describe_fields

    fields = [field for field in describe_fields() if field.name.startswith(section)]
    if not fields:
        raise UsageError(
            f"no field begins with `{section}`", hint="`vit21k recipes fields` lists them all"
        )
    if as_json:
        console.print_json([field._asdict() for field in fields])
        return
    for field in fields:
        console.print_lines(f"{field.name}: {field.values}; default {field.default}")
        console.print_lines(f"    {field.meaning}")


def sheet_command(
    recipe: RecipeName,
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="A PNG to write.")
    ] = Path("augmentation.png"),
    root: ImageRoot = None,
    images: Annotated[int, typer.Option(min=1, max=64, help="Rows of the sheet.")] = 8,
    draws: Annotated[int, typer.Option(min=1, max=64, help="Columns of the sheet.")] = 6,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Draw training images with the augmentation of a recipe, and their labels.

    The first column shows the original images; the others come from the training code, including
    mixup and cutmix. The numbers under a mixed image are the targets of its labels.

    [bold]Examples[/bold]

      vit21k recipes sheet pretrain_l16_in21k

      vit21k recipes sheet mine.yaml --set augment.mixup_alpha=0.8 --out mixed.png
    """
    from vit21k.atomic import atomic_file
    from vit21k.recipe.load import load_recipe
    from vit21k.training.contact_sheet import contact_sheet
    from vit21k.training.context import open_split_data

    loaded = load_recipe(recipe, overrides or [])
    data = open_split_data(manifests, root)
    sheet = contact_sheet(loaded, data.train, data.classes, num_images=images, num_draws=draws)
    with atomic_file(out) as file:
        sheet.save(file, "PNG")
    num_rows = min(images + images % 2, len(data.train))
    if as_json:
        console.print_json({"file": str(out), "images": num_rows, "draws": draws})
    console.done(
        f"recipes sheet: {num_rows} images, {draws} variants each -> `{out}`; "
        f"next: `vit21k train --recipe {recipe}`"
    )
