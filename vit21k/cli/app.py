"""The Typer application: all commands, and the handling of errors."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from inspect import Parameter, getdoc, signature
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from vit21k import errors
from vit21k.cli import (
    bench,
    check,
    classes,
    console,
    demo,
    doctor,
    evaluate,
    inspect,
    labels,
    pack,
    prepare,
    recipes,
    runs,
    train,
    use,
)
from vit21k.errors import Vit21kError


def main() -> None:
    """Run the command line; entry point of `vit21k`."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    _ensure_utf8()
    _forget_service_links()
    _expand_home_folders()
    try:
        with console.decoder_messages_counted():
            _app_for(sys.argv[1:])()
    except Vit21kError as error:
        console.fail(error)
        sys.exit(error.exit_code)
    except _StoppedError as stop:
        console.fail_with(f"stopped by {stop}", "rerun the same command to resume")
        sys.exit(stop.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(errors.EXIT_FAILED)
    except OSError as error:
        message, hint, code = _storage_problem(error)
        console.fail_with(message, hint)
        sys.exit(code)


def _ensure_utf8() -> None:
    """Start again in UTF-8 mode if the locale has another encoding, which no path may depend on."""
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 (this program)


def _forget_service_links() -> None:
    """Remove the variables that Kubernetes and Docker set for a Service of our name.

    For one called `vit21k-serve`, ``VIT21K_SERVE_PORT`` is ``tcp://10.0.0.1:80`` in every pod,
    which is not a value of the option `--port` of `vit21k serve`.
    """
    link = re.compile("(tcp|udp|sctp)://")
    for name, value in list(os.environ.items()):
        if name.startswith("VIT21K_") and link.match(value):
            del os.environ[name]


def _expand_home_folders() -> None:
    """Expand ``~`` in ``--option=~/path`` and in our variables, which shells do not."""
    sys.argv[1:] = [
        "=".join([option, str(Path(value).expanduser())]) if value.startswith("~/") else argument
        for argument in sys.argv[1:]
        for option, _, value in [argument.partition("=")]
    ]
    for name, value in os.environ.items():
        if name.startswith("VIT21K_") and value.startswith("~/"):
            os.environ[name] = str(Path(value).expanduser())


class _StoppedError(BaseException):
    """SIGINT or SIGTERM; a BaseException, so that `except Exception` does not catch it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = {
            signal.SIGINT: errors.EXIT_INTERRUPTED,
            signal.SIGTERM: errors.EXIT_TERMINATED,
        }[signal.Signals(signum)]


def _stop(signum: int, _frame: FrameType | None) -> NoReturn:
    raise _StoppedError(signum)


def _storage_problem(error: OSError) -> tuple[str, str | None, int]:
    """Return message, hint and exit code."""
    in_the_way = (FileExistsError, NotADirectoryError, IsADirectoryError)
    if error.filename and isinstance(error, in_the_way):
        what = "is a folder" if isinstance(error, IsADirectoryError) else "is not a folder"
        return f"`{error.filename}` {what}", "name another path", errors.EXIT_USAGE
    if error.filename and error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
        return f"{error.strerror}: `{error.filename}`", None, errors.EXIT_USAGE
    if isinstance(error, errors.UnreachableError):
        return str(error), "check the address and the network", errors.EXIT_UNREACHABLE
    hints = {
        errno.ENOSPC: "free some space, then rerun the same command",
        errno.EDQUOT: "your disk quota is used up; free some space, then rerun the same command",
        errno.EACCES: f"check the permissions; this process has the user id {os.geteuid()}",
        errno.EROFS: "the file system is mounted read-only; give another folder",
        errno.EMFILE: "too many open files; raise the limit: `ulimit -n 4096`",
        errno.EIO: "the disk may be failing; check the system log",
    }
    where = f": `{error.filename}`" if error.filename else ""
    message = f"{error.strerror or error}{where}"
    is_forbidden = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    code = errors.EXIT_NO_PERMISSION if is_forbidden else errors.EXIT_STORAGE
    return message, hints.get(error.errno or 0), code


def _print_version(wanted: bool) -> None:
    if wanted:
        from vit21k import __version__

        console.print_lines(f"vit21k {__version__}")
        raise typer.Exit


def root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """ImageNet-21K, cleaned and split, and a Vision Transformer trained on it."""


class _Group(NamedTuple):
    """Commands below one word: `vit21k labels select`."""

    help: str
    commands: "Commands"


Commands = Mapping[str, Callable[..., None] | _Group]


def _add(
    app: typer.Typer, commands: Commands, *, panel: str | None = None, is_listed: bool = False
) -> None:
    """Add *commands*, by name, to *app*; their help is their docstring.

    Args:
        app: Application or group.
        commands: Commands and groups.
        panel: Help panel.
        is_listed: Without their options: they are only listed.
    """
    for name, command in commands.items():
        if isinstance(command, _Group):
            group = typer.Typer(cls=_CommandGroup, no_args_is_help=True, help=command.help)
            _add(group, command.commands, is_listed=is_listed)
            app.add_typer(group, name=name, rich_help_panel=panel)
        else:
            text = _joined(getdoc(command) or "")
            run = _listed if is_listed else _expanded(command)
            app.command(name, cls=_Command, help=text, rich_help_panel=panel)(run)


def _listed() -> None:
    """Stand for a command that is only listed."""


class _Command(TyperCommand):
    """A command with hints for unknown options and invalid values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse *args*.

        Raises:
            UsageError: There is an unknown option, an invalid value, or an argument is missing.
        """
        typed = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # click's UsageError, which Typer does not export
            from vit21k.cli.hints import invalid_usage, unknown_option

            words = ctx.command_path.removeprefix(ctx.find_root().info_name or "").strip()
            option = getattr(error, "option_name", None)
            if option is None and hasattr(error, "format_message"):
                raise invalid_usage(words, error.format_message()) from error
            if not hasattr(error, "possibilities") or option is None:
                raise
            known = {name for param in self.params for name in (*param.opts, *param.secondary_opts)}
            raise unknown_option(words, typed, option, known) from error


class _CommandGroup(TyperGroup):
    """A group of commands with a hint for unknown ones."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that *args* name.

        Raises:
            UsageError: There is none.
        """
        try:
            return super().resolve_command(ctx, args)
        except Exception as error:  # click's NoSuchCommand
            if not hasattr(error, "format_message"):
                raise
            from vit21k.cli.hints import unknown_command

            words = ctx.command_path.removeprefix(ctx.find_root().info_name or "").strip()
            raise unknown_command(words, args, self.commands) from error


def _joined(text: str) -> str:
    """Return *text* with the lines of each paragraph joined, except those that are indented."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        paragraph if paragraph.startswith(" ") else paragraph.replace("\n", " ")
        for paragraph in paragraphs
    )


def _expanded(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of *command* that is a dataclass of options by its fields."""
    own = signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: param.annotation
        for name, param in own.parameters.items()
        if is_dataclass(param.annotation)
    }

    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    expanded: list[Parameter] = []
    for name, param in own.parameters.items():
        parts = signature(groups[name]).parameters.values() if name in groups else [param]
        expanded += (part.replace(kind=Parameter.KEYWORD_ONLY) for part in parts)
    run.__signature__ = own.replace(parameters=expanded)  # type: ignore[attr-defined]
    return run


_COMMANDS: dict[str, Commands] = {  # by help panel, in the order of `--help`
    "Prepare the data (in this order)": {
        "hash": prepare.hash_command,
        "relabel": prepare.relabel_command,
        "make-val": prepare.make_val_command,
        "get-dataset": prepare.get_dataset_command,
        "verify": check.verify_command,
        "diff": check.diff_command,
        "leaks": inspect.leaks_command,
        "report": inspect.report_command,
        "review": inspect.review_command,
        "classes": _Group(
            "Class lists, and what their classes are.",
            {
                "lists": classes.lists_command,
                "identify": classes.identify_command,
                "show": classes.show_classes,
                "search": classes.search_command,
                "map": classes.map_command,
                "stats": classes.class_stats,
            },
        ),
        "labels": _Group(
            "New manifests with other labels; the old ones stay as they are.",
            {
                "stats": labels.print_label_stats,
                "conflicts": labels.conflicts_command,
                "reduce": labels.reduce_command,
                "expand": labels.expand_command,
                "select": labels.select_command,
                "tree": labels.tree_command,
                "near-duplicates": inspect.near_duplicates_command,
                "apply": inspect.apply_command,
            },
        ),
        "import-md5sum": pack.import_md5sum_command,
        "export-lists": pack.export_lists_command,
        "export-dataset": pack.export_dataset_command,
        "pack": pack.pack_command,
    },
    "Train": {
        "train": train.train_command,
        "launch": _Group(
            "Train on a cluster: Slurm, Kubernetes.",
            {"slurm": train.slurm_command, "k8s": train.k8s_command},
        ),
        "runs": _Group(
            "List, compare and plot training runs.",
            {
                "list": runs.list_runs,
                "compare": runs.compare_command,
                "plot": runs.plot_command,
            },
        ),
        "recipes": _Group(
            "List, show and check training recipes.",
            {
                "list": recipes.list_recipes,
                "show": recipes.show_recipe,
                "check": recipes.check_command,
                "fields": recipes.fields_command,
                "sheet": recipes.sheet_command,
            },
        ),
        "bench": bench.bench_command,
    },
    "Use a trained model": {
        "eval": evaluate.eval_command,
        "predict": use.predict_command,
        "features": use.features_command,
        "explain": use.explain_command,
        "export": use.export_command,
        "serve": use.serve_command,
        "models": use.models_command,
    },
    "Help": {
        "status": check.status_command,
        "demo": demo.demo_command,
        "doctor": doctor.doctor_command,
    },
}


def _app_of(names: Container[str], *, is_listed: bool = False) -> typer.Typer:
    """Return an application with the commands and groups of these *names*."""
    app = typer.Typer(
        cls=_CommandGroup,
        name="vit21k",
        help="ImageNet-21K, cleaned and split, and a Vision Transformer trained on it.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "VIT21K"},
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    exit_codes = "; ".join(f"{code} {text}" for code, text in errors.EXIT_CODES.items())
    app.callback(epilog=f"Exit codes: {exit_codes}")(root)
    for panel, commands in _COMMANDS.items():
        wanted = {name: command for name, command in commands.items() if name in names}
        _add(app, wanted, panel=panel, is_listed=is_listed)
    return app


_NAMES = frozenset(name for commands in _COMMANDS.values() for name in commands)
_LISTING = ("-h", "--help", "--version")
_COMPLETION = "_VIT21K_COMPLETE"  # variable that shells set


@cache
def _complete_app() -> typer.Typer:
    return _app_of(_NAMES)


def __getattr__(name: str) -> typer.Typer:
    """Return `app`, with all commands; built when it is needed."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _complete_app()


def _app_for(arguments: Sequence[str]) -> typer.Typer:
    """Return an application with the commands that *arguments* need: others take time to build."""
    first = next(iter(arguments), "--help")
    if _COMPLETION in os.environ:
        return _complete_app()
    if first in _NAMES:
        return _app_of({first})
    return _app_of(_NAMES, is_listed=True) if first in _LISTING else _complete_app()
