"""Who may do what: scopes, the principal of a call, and how a key looks. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from taskflux.tasks.model import DEFAULT_TENANT


class Scope(StrEnum):
    """What a caller may do."""

    SUBMIT = "submit"  # submit tasks, deliver notifications
    READ = "read"  # look at tasks and dead letters, without payloads
    OPERATE = "operate"  # cancel, resolve, replay, discard
    PAYLOAD = "payload"  # see payloads and the bytes of records
    ADMIN = "admin"  # all of these, and the audit trail


EVERYTHING: Final = frozenset(Scope)
USUAL: Final = frozenset({Scope.SUBMIT, Scope.READ})
"""The scopes of a key that is made without any being named."""

NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
"""What a tenant may be called."""


def scopes_of(names: Iterable[str]) -> frozenset[Scope]:
    """These scopes; `admin` includes all others, and a name that this release does not know gives nothing."""
    known = frozenset(Scope(name) for name in names if name in Scope.__members__.values())
    return EVERYTHING if Scope.ADMIN in known else known


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls.

    Args:
        subject: names the caller in logs and in the audit trail; never a secret.
        tenant: whose tasks it sees.
        scopes: what it may do.
        types: the task types that it is bound to; None: all.
    """

    subject: str
    tenant: str = DEFAULT_TENANT
    scopes: frozenset[Scope] = EVERYTHING
    types: frozenset[str] | None = None

    def may(self, scope: Scope) -> bool:
        """Whether it has this scope."""
        return scope in self.scopes

    def sees(self, task_type: str | None) -> bool:
        """Whether tasks of this type exist for it."""
        return self.types is None or task_type in self.types


NOBODY: Final = Principal("nobody")
"""The principal of a call without a key where none is required."""

PREFIX_LENGTH: Final = 12
KEY: Final = re.compile(rb"tf_([a-z2-7]{12})_[A-Za-z0-9]{43,64}")
"""A key: what it is, the prefix that it is looked up by, and a secret of at least 256 bits."""


class StoredKey(NamedTuple):
    """A key as it is stored: without its secret."""

    prefix: str
    hash: bytes


def stored(key: bytes) -> StoredKey | None:
    """What is stored of a key; None if it is not one.

    SHA-256 is enough: a secret of 256 random bits cannot be guessed, however fast a guess is checked.
    """
    match = KEY.fullmatch(key)
    return None if match is None else StoredKey(match[1].decode("ascii"), hashlib.sha256(key).digest())
