"""Keys of the API, as PostgreSQL has them."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from taskflux.store.database import Database, Row, new_id, statements
from taskflux.tasks.access import PREFIX_LENGTH, Principal, Scope, StoredKey, scopes_of, stored

SQL: Final = statements("keys")

MOST: Final = 10_000
"""Keys after which no further one is made: every process that serves the API has them in memory. Those that are being
replaced come on top of them."""

_OF_PREFIXES: Final = "abcdefghijklmnopqrstuvwxyz234567"
_OF_SECRETS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_SECRET_LENGTH: Final = 43  # of 62 characters: 256 bits


class UsableKey(NamedTuple):
    """A key that can be used now; `seconds` is for how long still, None for ever."""

    stored: StoredKey
    principal: Principal
    seconds: float | None


class NewKey(NamedTuple):
    """A key that was just made: `key` is the secret itself, which nobody can show again."""

    key: str
    row: Row


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The table of keys."""

    database: Database

    async def create(
        self, name: str, tenant: str, scopes: Collection[Scope], types: Collection[str] | None, lifetime: float | None
    ) -> NewKey | None:
        """Make a key that can be used for `lifetime` seconds (None: for ever); None: there are `MOST` already.

        Raises:
            StoreError: it is not known to be made.
        """
        key, found = _new_key()
        row = await self.database.fetchrow(
            SQL["create_key"],
            id=new_id(),
            prefix=found.prefix,
            hash=found.hash,
            name=name,
            tenant=tenant,
            scopes=sorted(scopes),
            types=None if types is None else sorted(types),
            lifetime=lifetime,
            most=MOST,
        )
        return None if row is None else NewKey(key, row)

    async def rotate(self, former: str, overlap: float, lifetime: float | None) -> NewKey | None:
        """Make a key in place of the one with the prefix `former`, which ends after `overlap` seconds.

        None: the former one cannot be used any more. Raises StoreError.
        """
        key, found = _new_key()
        row = await self.database.fetchrow(
            SQL["rotate_key"],
            former=former,
            overlap=overlap,
            id=new_id(),
            prefix=found.prefix,
            hash=found.hash,
            lifetime=lifetime,
        )
        return None if row is None else NewKey(key, row)

    async def revoke(self, prefix: str) -> bool:
        """End a key now; false if it was revoked before, or never made. Raises StoreError."""
        return await self.database.fetchrow(SQL["revoke_key"], prefix=prefix) is not None

    async def get(self, prefix: str) -> Row | None:
        """The key with this prefix. Raises StoreError."""
        return await self.database.fetchrow(SQL["get_key"], prefix=prefix)

    async def list(self, tenant: str | None, *, all: bool) -> Sequence[Row]:
        """The keys of a tenant (None: of all); with `all`, those too that ended before. Raises StoreError."""
        return await self.database.fetch(SQL["list_keys"], tenant=tenant, all=all)

    async def revision(self) -> int:
        """A number that is greater after every change of a key. Raises StoreError."""
        row = await self.database.fetchrow(SQL["access_revision"])
        return 0 if row is None else int(row["revision"])

    async def usable(self) -> Sequence[UsableKey]:
        """All keys that can be used now. Raises StoreError."""
        return [
            UsableKey(
                StoredKey(row["prefix"], row["hash"]),
                Principal(
                    f"key:{row['prefix']}",
                    row["tenant"],
                    scopes_of(row["scopes"]),
                    None if row["types"] is None else frozenset(row["types"]),
                ),
                row["seconds"],
            )
            for row in await self.database.fetch(SQL["usable_keys"])
        ]

    async def note_used(self, prefixes: Collection[str]) -> None:
        """Note that these keys were used within the last minute. Raises StoreError."""
        await self.database.fetch(SQL["note_used_keys"], prefixes=sorted(prefixes))


def _new_key() -> tuple[str, StoredKey]:
    prefix = "".join(secrets.choice(_OF_PREFIXES) for _ in range(PREFIX_LENGTH))
    secret = "".join(secrets.choice(_OF_SECRETS) for _ in range(_SECRET_LENGTH))
    key = f"tf_{prefix}_{secret}"
    found = stored(key.encode("ascii"))
    assert found is not None
    return key, found
