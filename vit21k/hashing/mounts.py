"""Which kind of file system a folder lies on."""

import os
from pathlib import Path

_REMOTE_NAMES = (
    "9p afs beegfs ceph cifs coda davfs glusterfs gpfs lustre ncpfs nfs nfs4 orangefs pvfs2 smb3 "
    "smbfs virtiofs wekafs"
)
_REMOTE = frozenset(_REMOTE_NAMES.split())
_MOUNTS = Path("/proc/self/mountinfo")


def is_remote(folder: Path) -> bool:
    """Return whether inodes and status-change times need not last where *folder* lies.

    They may be made up anew by the next machine, or the next mount, that looks.
    """
    kind = file_system_of(folder)
    return kind in _REMOTE or kind.startswith("fuse")


def file_system_of(folder: Path) -> str:
    """Return the type of the file system of *folder*, such as "ext4"; "" if it is not known."""
    path = os.path.realpath(folder)
    longest, kind = -1, ""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return ""
    for line in lines:
        before, _, after = line.partition(" - ")
        mount = before.split(" ")[4].encode().decode("unicode_escape")  # blanks are \040
        if len(mount) >= longest and Path(path).is_relative_to(mount):
            longest, kind = len(mount), after.split(" ")[0]
    return kind
