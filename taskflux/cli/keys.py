"""`taskflux keys`: keys of the API, straight in PostgreSQL, so that the first one needs no other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import click

from taskflux.cli.program import FAILED, KEY_VARIABLE, Group, leave, settings_or_leave
from taskflux.cli.setup import finish
from taskflux.cli.shown import json_option, print_json, print_table
from taskflux.cli.values import Duration
from taskflux.store.database import Database
from taskflux.store.keys import MOST, ApiKeys, NewKey
from taskflux.stream.topics import is_task_type
from taskflux.tasks.access import KEY, NAME, PREFIX_LENGTH, USUAL, Scope
from taskflux.tasks.fields import rfc3339
from taskflux.tasks.model import DEFAULT_TENANT

T = TypeVar("T")

LONGEST_NAME: Final = 100


class Words(click.ParamType[tuple[str, ...]]):
    """Comma-separated words, each of which `check` finds nothing wrong with."""

    def __init__(self, name: str, wrong: Callable[[str], str | None]) -> None:
        self.name = name
        self._wrong = wrong

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        words = value if isinstance(value, tuple) else tuple(filter(None, map(str.strip, value.split(","))))
        if not words:
            self.fail("is empty: name one at least", param, ctx)
        for said in filter(None, map(self._wrong, words)):
            self.fail(said, param, ctx)
        return words


class Prefix(click.ParamType[str]):
    """A key's prefix. A whole key is taken, too: its owner may have no other name for it."""

    name = "prefix"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if (whole := KEY.fullmatch(value.encode())) is not None:
            return whole[1].decode("ascii")
        prefix: str = value.removeprefix("tf_")
        if len(prefix) != PREFIX_LENGTH:
            self.fail(f"{value!r} is not a key's prefix: `taskflux keys list` shows them", param, ctx)
        return prefix


def _scope(word: str) -> str | None:
    known = ", ".join(Scope)
    return None if word in Scope.__members__.values() else f"{word!r} is not a scope: there are {known}"


def _type(word: str) -> str | None:
    return None if is_task_type(word) else f"{word!r} is not a task type"


def _tenant(context: click.Context, parameter: click.Parameter, tenant: str | None) -> str | None:
    if tenant is not None and not NAME.fullmatch(tenant):
        raise click.BadParameter("a tenant has 1 to 63 letters, digits, `.`, `_` and `-`, the first a letter or digit")
    return tenant


@click.group(cls=Group)
def keys() -> None:
    """Make, list, end and replace keys of the API. Needs PostgreSQL, and no key."""


@keys.command()
@click.argument("name")
@click.option(
    "--scopes",
    type=Words("scopes", _scope),
    default=",".join(sorted(USUAL)),
    show_default=True,
    help="What it may do: submit; read (without payloads); operate (cancel, resolve, replay, discard); payload (see"
    " payloads); admin (all of these, and the audit trail).",
)
@click.option("--types", type=Words("types", _type), help="Only for these task types: email,sms.  [default: all]")
@click.option("--tenant", callback=_tenant, default=DEFAULT_TENANT, show_default=True, help="Whose tasks it sees.")
@click.option("--expires", type=Duration(), help="It ends after this time: 90d.  [default: never]")
@json_option
def create(
    name: str,
    scopes: tuple[str, ...],
    types: tuple[str, ...] | None,
    tenant: str,
    expires: float | None,
    as_json: bool,
) -> None:
    """Make a key. NAME says what it is for. The key is printed once, on stdout; nobody can show it again.

    \b
    taskflux keys create first
    taskflux keys create billing --types email --expires 90d
    taskflux keys create ops --scopes read,operate,payload --tenant acme
    """
    if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable():
        raise click.UsageError(f"a name has 1 to {LONGEST_NAME} characters")
    chosen = {Scope(word) for word in scopes}
    made = _with_keys(lambda store: store.create(name, tenant, chosen, types, expires))
    if made is None:
        leave(f"there are {MOST:,} keys already: revoke those that are not needed", FAILED)
    _show_new(made, as_json)


@keys.command("list")
@click.option("--tenant", callback=_tenant, help="Only the keys of this tenant.")
@click.option("--all", "every", is_flag=True, help="Those too that are revoked or expired.")
@json_option
def list_keys(tenant: str | None, every: bool, as_json: bool) -> None:
    """List keys, newest first. LAST USED is accurate to some minutes."""
    rows = _with_keys(lambda store: store.list(tenant, all=every))
    if as_json:
        print_json([_document(row) for row in rows])
    elif not rows:
        click.echo("there are no keys: make one with `taskflux keys create`", err=True)
    else:
        columns = ("prefix", "name", "tenant", "scopes", "types", "created", "expires", "last used", "state")
        print_table(columns, [_cells(row) for row in rows])


@keys.command()
@click.argument("prefix", type=Prefix())
def revoke(prefix: str) -> None:
    """End the key with this PREFIX. Every replica refuses it within ten seconds."""

    async def end(store: ApiKeys) -> bool | None:
        return None if await store.get(prefix) is None else await store.revoke(prefix)

    revoked = _with_keys(end)
    if revoked is None:
        leave(f"there is no key tf_{prefix}: `taskflux keys list --all` shows those that there are", FAILED)
    click.echo(f"revoked tf_{prefix}: it stops working within ten seconds" if revoked else "it was revoked before")


@keys.command()
@click.argument("prefix", type=Prefix())
@click.option(
    "--overlap",
    type=Duration(),
    default="1h",
    show_default=True,
    help="For how long the key that it replaces works still; 0: it ends now.",
)
@click.option("--expires", type=Duration(), help="The new one ends after this time: 90d.  [default: never]")
@json_option
def rotate(prefix: str, overlap: float, expires: float | None, as_json: bool) -> None:
    """Make a key in place of the one with this PREFIX: the same name, tenant, scopes and types, another secret."""
    made = _with_keys(lambda store: store.rotate(prefix, overlap, expires))
    if made is None:
        leave(f"there is no key tf_{prefix} that can be used: `taskflux keys list` shows those that there are", FAILED)
    _show_new(made, as_json)
    if not as_json:
        click.echo(f"tf_{prefix} ends within {overlap:g} s", err=True)


def _with_keys(work: Callable[[ApiKeys], Awaitable[T]]) -> T:
    settings = settings_or_leave("postgres")

    async def run() -> T:
        database = Database(settings.postgres, pool_size=1, name="taskflux")
        await database.open()
        try:
            return await work(ApiKeys(database))
        finally:
            await database.close()

    return finish(run())


def _show_new(made: NewKey, as_json: bool) -> None:
    if as_json:
        print_json({"key": made.key, **_document(made.row)})
        return
    click.echo(made.key)
    may = ", ".join(made.row["scopes"])
    click.echo(
        f"the key {made.row['name']!r} may {may} in the tenant {made.row['tenant']}. It is shown only now: keep it"
        f" where secrets are kept, and send it as `Authorization: Bearer <key>`; commands read it from {KEY_VARIABLE}",
        err=True,
    )


def _document(row: Mapping[str, Any]) -> dict[str, Any]:
    times = {
        "createdAt": "created_at",
        "expiresAt": "expires_at",
        "revokedAt": "revoked_at",
        "lastUsedAt": "last_used_at",
    }
    return {
        "prefix": f"tf_{row['prefix']}",
        "name": row["name"],
        "tenant": row["tenant"],
        "scopes": list(row["scopes"]),
        "types": None if row["types"] is None else list(row["types"]),
        **{name: None if row[column] is None else rfc3339(row[column]) for name, column in times.items()},
        "state": _state(row),
    }


def _state(row: Mapping[str, Any]) -> str:
    if row["revoked_at"] is not None:
        return "revoked"
    return "expired" if row["expires_at"] is not None and row["expires_at"] <= datetime.now(UTC) else "ok"


def _cells(row: Mapping[str, Any]) -> list[object]:
    def day(moment: datetime | None) -> str:
        return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"

    return [
        f"tf_{row['prefix']}",
        row["name"],
        row["tenant"],
        ",".join(row["scopes"]),
        "" if row["types"] is None else ",".join(row["types"]),
        *(day(row[column]) for column in ("created_at", "expires_at", "last_used_at")),
        _state(row),
    ]
