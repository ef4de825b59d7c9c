"""The Typer application and the one place that handles errors."""

import errno
import os
import re
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

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
from vit21k.cli.options import join_paragraphs
from vit21k.errors import Vit21kError

app = typer.Typer(
    name="vit21k",
    help="ImageNet-21K, cleaned and split, and a Vision Transformer trained on it.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "VIT21K"},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """Run the command line; entry point of `vit21k`."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    _forget_service_links()
    try:
        with console.decoder_messages_counted():
            app()
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


def _forget_service_links() -> None:
    """Remove the variables that Kubernetes and Docker set for a Service of our name.

    For one called `vit21k-serve`, ``VIT21K_SERVE_PORT`` is ``tcp://10.0.0.1:80`` in every pod: not
    the option `--port` of `vit21k serve`, for which the variable is otherwise read.
    """
    link = re.compile("(tcp|udp|sctp)://")
    for name, value in list(os.environ.items()):
        if name.startswith("VIT21K_") and link.match(value):
            del os.environ[name]


class _StoppedError(BaseException):
    """SIGINT or SIGTERM; a BaseException so that nothing on the way takes it for an error."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = {
            signal.SIGINT: errors.EXIT_INTERRUPTED,
            signal.SIGTERM: errors.EXIT_TERMINATED,
        }[signal.Signals(signum)]


def _stop(signum: int, _frame: FrameType | None) -> NoReturn:
    raise _StoppedError(signum)


def _storage_problem(error: OSError) -> tuple[str, str | None, int]:
    """Return what is wrong, what to do, and the exit code."""
    in_the_way = (FileExistsError, NotADirectoryError, IsADirectoryError)
    if error.filename and isinstance(error, in_the_way):
        what = "is a folder" if isinstance(error, IsADirectoryError) else "is not a folder"
        return f"`{error.filename}` {what}", "name another place", errors.EXIT_USAGE
    if error.filename and error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
        return f"{error.strerror}: `{error.filename}`", None, errors.EXIT_USAGE
    hints = {
        errno.ENOSPC: "free some space, then run the same command again",
        errno.EDQUOT: "your disk quota is used up; free some space, then run the command again",
        errno.EACCES: "check who may read and write there",
        errno.EROFS: "the file system is mounted read-only; give another folder",
        errno.EMFILE: "this process may not open so many files; raise the limit: `ulimit -n 4096`",
        errno.EIO: "the disk or its cable is failing; check the system log",
    }
    where = f": `{error.filename}`" if error.filename else ""
    message = f"{error.strerror or error}{where}"
    return message, hints.get(error.errno or 0), errors.EXIT_STORAGE


def _print_version(wanted: bool) -> None:
    if wanted:
        from vit21k import __version__

        console.print_lines(f"vit21k {__version__}")
        raise typer.Exit


@app.callback(epilog="Exit codes: " + "; ".join(f"{k} {v}" for k, v in errors.EXIT_CODES.items()))
def root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """ImageNet-21K, cleaned and split, and a Vision Transformer trained on it."""


for _register in (  # in the order of `--help`
    prepare.register_hash,
    prepare.register_data,
    prepare.register_datasets,
    check.register_check,
    inspect.register_leaks,
    inspect.register_report,
    inspect.register_review,
    classes.register_classes,
    labels.register,
    pack.register_lists,
    pack.register_export_dataset,
    pack.register_pack,
    train.register_train,
    train.register_launch,
    runs.register,
    recipes.register,
    bench.register,
    evaluate.register,
    use.register_predict,
    use.register_features,
    use.register_explain,
    use.register_export,
    use.register_serve,
    use.register_models,
    check.register_status,
    demo.register,
    doctor.register,
):
    _register(app)
join_paragraphs(app)
