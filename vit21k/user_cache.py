"""Where what can be made or fetched again is kept, for one user on one machine."""

import os
from pathlib import Path


def user_cache() -> Path | None:
    """Return the folder of vit21k in the user's cache; None if the user has no home.

    A container may run as a user whom the system does not know.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path("~/.cache").expanduser()) / "vit21k"
    except RuntimeError:
        return None
