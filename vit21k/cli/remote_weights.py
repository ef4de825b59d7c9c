"""Addresses of weights on the command line: fetched before a command starts, with progress."""

import os

from vit21k.cli import console

_BYTES = 1_000_000


def local_copy(path: str | os.PathLike[str]) -> str:
    """Return *path*; if it is an address, where its copy lies, fetched if need be.

    Raises:
        CheckpointError: There is no such file, or what came is damaged.
        OSError: The server cannot be reached.
    """
    from vit21k.weights.addresses import fetch, is_address

    text = os.fspath(path)
    if not is_address(text):
        return text
    with console.progress("download", unit="MB") as progress:

        def tell(num_bytes: int, total: int | None) -> None:
            progress.total = total // _BYTES if total else None
            progress.advance(num_bytes // _BYTES - progress.num_done)

        copy = fetch(text, tell=tell)
    console.note(f"`{text}` lies in `{copy}`")
    return str(copy)
