"""All exceptions that vit21k raises on purpose, exit codes, and printable file names.

Vit21kError                   the command line prints it without a traceback   exit 1
├── UsageError                arguments that contradict each other or the world       2
│   └── RecipeError           a recipe, or an override of it, is wrong                2
├── DataError                 input data are missing or invalid                       3
│   ├── ImageTreeError        the image root is not <root>/**/<class>/<file>
│   │   └── LayoutError       the names of its folders cannot be classes                  2
│   ├── ManifestError         a manifest is missing, stale, damaged or another one
│   ├── ImageError            one image cannot be decoded
│   │   └── UnreadableImageError   its file cannot be opened or read
│   └── CheckpointError       a checkpoint is missing, damaged or another model's
├── MissingExtraError         an optional dependency is not installed                 1
├── NonFiniteLossError        training diverged                                       1
├── TemporaryFolderError      the temporary folder is full or failing                74
├── LostPeerError             another process of the same run has ended               1
├── LockedError               another run works on the same folder                   75
├── TerminatedError           SIGTERM ended the run; a checkpoint is saved          143
└── InterruptedRunError       Ctrl-C ended the run; a checkpoint is saved           130

Any other exception is a bug and keeps its traceback, except `OSError` (no space, no permission, a
failing disk), which ends a command with exit code 74.
"""

import errno
import os

OUR_OWN_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors of the system that are about this process, not about the file."""

_CODES = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _CODES}


_CODES_ALONE = {code: text for code, text in _ESCAPES.items() if chr(code) not in "\n\t"}


def without_codes(text: str) -> str:
    r"""Return *text* with control characters as ``\x1b``, except line breaks and tabs."""
    return text.translate(_CODES_ALONE)


def one_line(text: str) -> str:
    r"""Return *text*, control characters and line breaks as ``\n``, ``\x1b``, ``\u2028``."""
    return text.translate(_ESCAPES)


def printable(path: bytes | str | os.PathLike[str]) -> str:
    r"""Return *path* as text; bytes that are not UTF-8 as ``\xNN``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_utf8(name: bytes) -> bool:
    """Return whether *name* is UTF-8."""
    if name.isascii():
        return True
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_BAD_DATA = 3
EXIT_DIFFERENCES = 4
EXIT_UNREACHABLE = 69
EXIT_STORAGE = 74
EXIT_LOCKED = 75
EXIT_NO_PERMISSION = 77
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

EXIT_CODES = {
    EXIT_DONE: "done",
    EXIT_FAILED: "failed",
    EXIT_USAGE: "wrong usage or recipe",
    EXIT_BAD_DATA: "some inputs are invalid (they are listed), or data do not match their manifest",
    EXIT_DIFFERENCES: "a check found differences",
    EXIT_UNREACHABLE: "a server could not be reached",
    EXIT_STORAGE: "a file could not be written or read (disk full, I/O error)",
    EXIT_LOCKED: "another run works on the same folder",
    EXIT_NO_PERMISSION: "no permission to read or write a file",
    EXIT_INTERRUPTED: "interrupted",
    EXIT_TERMINATED: "terminated; a checkpoint is saved",
}
"""Meaning of each exit code; printed by `vit21k --help` and docs/commands.md."""


class Vit21kError(Exception):
    """Base class.  *message* states the problem, *hint* what to do."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        message = without_codes(message)  # file names and file content occur in messages
        super().__init__(message)
        self.message = message
        self.hint = None if hint is None else without_codes(hint)


class UsageError(Vit21kError):
    """Arguments contradict each other, or name something that does not exist."""

    exit_code = EXIT_USAGE


class RecipeError(UsageError):
    """A recipe file, or an override with ``--set``, is invalid."""


class DataError(Vit21kError):
    """Input data are missing or invalid."""

    exit_code = EXIT_BAD_DATA


class ImageTreeError(DataError):
    """The image root has no ``<class>/<file>`` at any depth."""


class LayoutError(ImageTreeError):
    """The folders of the image root cannot be classes: splits, shards, or folders in classes."""

    exit_code = EXIT_USAGE


class ManifestError(DataError):
    """A manifest is missing, stale, damaged, or of another kind or version."""


class ImageError(DataError):
    """One image cannot be decoded; *kind* is the value of its `ProblemKind`."""

    def __init__(
        self, message: str, *, hint: str | None = None, kind: str = "damaged_image"
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class UnreadableImageError(ImageError):
    """The file of one image cannot be opened or read."""


class CheckpointError(DataError):
    """A checkpoint is missing, damaged, or belongs to another model or class list."""


class MissingExtraError(Vit21kError):
    """A command needs an optional dependency that is not installed."""


class NonFiniteLossError(Vit21kError):
    """The loss is not finite."""


class TemporaryFolderError(Vit21kError):
    """The folder for temporary files is full or failing."""

    exit_code = EXIT_STORAGE


class LostPeerError(Vit21kError):
    """Another process of the same run has ended, so this one cannot continue."""


class LockedError(Vit21kError):
    """Another process works on the same folder."""

    exit_code = EXIT_LOCKED


class TerminatedError(Vit21kError):
    """SIGTERM stopped the run after a checkpoint was saved."""

    exit_code = EXIT_TERMINATED


class InterruptedRunError(Vit21kError):
    """Ctrl-C stopped the run after a checkpoint was saved."""

    exit_code = EXIT_INTERRUPTED


class UnreachableError(OSError):
    """A server could not be reached: no such name, no network, or no service at its port."""
