"""PostgreSQL refuses to run as root: whom it runs as then, and what that user has to be able to reach."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from taskflux.local.trouble import Trouble


@dataclass(frozen=True, slots=True)
class Identity:
    """A user of this machine."""

    name: str
    uid: int
    gid: int


def identity_for(cluster: Path) -> Identity | None:
    """Whom the server of `cluster` has to run as; None when we are not root and it runs as ourselves.

    An existing cluster's owner, else `postgres` where the machine has such a user, else `nobody`: no user is made.

    Raises:
        Trouble: we are root, and there is no such user.
    """
    if os.geteuid() != 0:
        return None
    if cluster.exists() and (owner := cluster.stat().st_uid) != 0:
        try:
            return _identity(pwd.getpwuid(owner))
        except KeyError:
            raise Trouble(
                f"{cluster} belongs to user id {owner}, which has no name here, and PostgreSQL does not run as root:"
                f" give it to a user (chown -R postgres {cluster}), or run taskflux dev as that user"
            ) from None
    for name in ("postgres", "nobody"):
        try:
            return _identity(pwd.getpwnam(name))
        except KeyError:
            continue
    raise Trouble(
        "PostgreSQL does not run as root, and there is no user postgres or nobody to run it as:"
        " run taskflux dev as an ordinary user"
    )


def make_reachable(path: Path, identity: Identity) -> list[Path]:
    """Let `identity` pass through every directory above `path`; answers those that had to be opened (o+x, no more).

    Raises:
        Trouble: one cannot be opened.
    """
    opened: list[Path] = []
    for directory in path.resolve().parents:
        status = directory.stat()
        if status.st_mode & stat.S_IXOTH or status.st_uid == identity.uid:
            continue
        try:
            directory.chmod(stat.S_IMODE(status.st_mode) | stat.S_IXOTH)
        except OSError as error:
            raise Trouble(
                f"PostgreSQL runs as {identity.name}, who cannot pass through {directory}:"
                " run taskflux dev as an ordinary user, or from a directory that everybody can reach"
            ) from error
        opened.append(directory)
    return opened


def make_readable(install: Path) -> None:
    """Let everybody read and run PostgreSQL's own files, which a strict umask at installation may have closed."""
    probe = stat.S_IROTH | stat.S_IXOTH
    if all(path.stat().st_mode & probe == probe for path in (install, install / "bin", install / "bin" / "postgres")):
        return
    for path in (install, *install.rglob("*")):
        if path.is_symlink():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))


def _identity(entry: pwd.struct_passwd) -> Identity:
    return Identity(entry.pw_name, entry.pw_uid, entry.pw_gid)
