"""Names that are shown: those of files may hold line breaks, codes for a terminal, any bytes.

Every exception vit21k raises on purpose.

Vit21kError                   the command line prints it without a traceback   exit 1
├── UsageError                arguments that contradict each other or the world       2
│   └── RecipeError           a recipe, or an override of it, is wrong                2
├── DataError                 the files on disk are not what they were said to be     3
│   ├── ImageTreeError        the image root is not <root>/**/<class>/<file>
│   │   └── LayoutError       the names of its folders cannot be classes                  2
│   ├── ManifestError         a manifest is missing, stale, damaged or another one
│   ├── ImageError            one image cannot be decoded
│   │   └── UnreadableImageError   its file cannot be opened or read
│   └── CheckpointError       a checkpoint is missing, damaged or another model's
├── MissingExtraError         an optional dependency is not installed                 1
├── NonFiniteLossError        training diverged                                       1
├── TemporaryFolderError      the temporary folder is full or failing                74
├── LostPeerError             another process of the same run has ended                1
├── LockedError               another run works on the same folder                   75
├── TerminatedError           SIGTERM ended the run; its state is saved             143
└── InterruptedRunError       Ctrl-C ended the run; its state is saved              130

Anything else that escapes is a bug in vit21k and keeps its traceback, except `OSError`
(no space, no permission, a failing disk), which ends a command with exit code 74.
"""

import errno
import os

OUR_OWN_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors of the system that are about this process, not about the file."""

_CODES = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _CODES}


_CODES_ALONE = {code: text for code, text in _ESCAPES.items() if chr(code) not in "\n\t"}


def without_codes(text: str) -> str:
    r"""Return *text* with control characters as ``\x1b``; its lines and tabs stay."""
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
EXIT_STORAGE = 74
EXIT_LOCKED = 75
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

EXIT_CODES = {
    EXIT_DONE: "done",
    EXIT_FAILED: "failed",
    EXIT_USAGE: "wrong usage or recipe",
    EXIT_BAD_DATA: "some inputs were bad (they are listed), or data are not what was said",
    EXIT_DIFFERENCES: "a check found differences",
    EXIT_STORAGE: "a file could not be written or read (disk full, no permission, I/O error)",
    EXIT_LOCKED: "another run works on the same folder",
    EXIT_INTERRUPTED: "interrupted",
    EXIT_TERMINATED: "terminated; the state is saved",
}
"""What each exit code of the command line means; the README and `vit21k --help` print it."""


class Vit21kError(Exception):
    """Base class.  *message* says what is wrong, *hint* what to do about it."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        message = without_codes(message)  # names of files, and what files say, come in messages
        super().__init__(message)
        self.message = message
        self.hint = None if hint is None else without_codes(hint)


class UsageError(Vit21kError):
    """The arguments contradict each other, or name what is not there."""

    exit_code = EXIT_USAGE


class RecipeError(UsageError):
    """A recipe file, or an override given with ``--set``, is not usable."""


class DataError(Vit21kError):
    """Input data is missing or is not what the caller said it is."""

    exit_code = EXIT_BAD_DATA


class ImageTreeError(DataError):
    """The image root does not hold ``<class>/<file>`` at any depth."""


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
    """The loss stopped being a finite number."""


class TemporaryFolderError(Vit21kError):
    """The folder for temporary files is full or failing; no input is to blame."""

    exit_code = EXIT_STORAGE


class LostPeerError(Vit21kError):
    """Another process of the same run has ended, so that this one cannot continue."""


class LockedError(Vit21kError):
    """Another process works on the same folder."""

    exit_code = EXIT_LOCKED


class TerminatedError(Vit21kError):
    """SIGTERM asked the run to stop; its state was saved first."""

    exit_code = EXIT_TERMINATED


class InterruptedRunError(Vit21kError):
    """Ctrl-C asked the run to stop; its state was saved first."""

    exit_code = EXIT_INTERRUPTED
