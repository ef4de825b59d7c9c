"""`recipes list | show | check | fields`."""

from typing import Annotated

import typer

from vit21k.cli import console
from vit21k.cli.options import AsJson

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A shipped recipe, or a path that ends in .yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change a field; may be repeated."),
]


def register(app: typer.Typer) -> None:
    """Add the `recipes` commands to *app*."""
    recipes = typer.Typer(no_args_is_help=True, help="List, show and check training recipes.")
    recipes.command("list")(list_command)
    recipes.command("show")(show_command)
    recipes.command("check")(check_command)
    recipes.command("fields")(fields_command)
    app.add_typer(recipes, name="recipes", rich_help_panel="Train")


def list_command(as_json: AsJson = False) -> None:
    """Print the shipped recipes, each with what it is.

    [bold]Examples[/bold]

      vit21k recipes list
    """
    from vit21k.config.recipe import shipped_recipes, summary

    summaries = {name: summary(name) for name in shipped_recipes()}
    if as_json:
        console.print_json(summaries)
        return
    console.print_table(["recipe", "what it is"], [list(row) for row in summaries.items()])
    console.note("next: `vit21k recipes show NAME`, or `vit21k train --recipe NAME`")


def show_command(recipe: RecipeName, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print a recipe as it will run: defaults and changes filled in.

    [bold]Examples[/bold]

      vit21k recipes show pretrain_l16_in21k

      vit21k recipes show tiny --set optim.lr=1e-3 > mine.yaml
    """
    from vit21k.config.recipe import dump_recipe, load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if as_json:
        console.print_json(loaded.model_dump(mode="json"))
    else:
        console.print_lines(dump_recipe(loaded))


def check_command(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Say whether a recipe can be used; list everything that is wrong with it.

    [bold]Examples[/bold]

      vit21k recipes check mine.yaml

      vit21k recipes check pretrain_l16_in21k --set model.img_size=256
    """
    from vit21k.config.recipe import load_recipe
    from vit21k.models.registry import model_args

    model = load_recipe(recipe, overrides or []).model
    sizes = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "global_pool")
    given = {name: getattr(model, name) for name in sizes}
    model_args(model.name, **{name: value for name, value in given.items() if value is not None})
    console.done(f"recipes check: `{recipe}` is usable; next: `vit21k train --recipe {recipe}`")


def fields_command(as_json: AsJson = False) -> None:
    """Print every field of a recipe: what it may be, its default, its meaning.

    [bold]Examples[/bold]

      vit21k recipes fields

      vit21k recipes fields | grep optim
    """
    from vit21k.config.describe import describe_fields

    fields = describe_fields()
    if as_json:
        console.print_json([field._asdict() for field in fields])
        return
    for field in fields:
        console.print_lines(f"{field.name}: {field.values}; default {field.default}")
        console.print_lines(f"    {field.meaning}")
