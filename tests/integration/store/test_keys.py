"""Keys of the API as PostgreSQL keeps them: made, found, replaced, ended, and what a process learns of it."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from taskflux.http.access import Access
from taskflux.store import keys
from taskflux.store.database import Database
from taskflux.store.keys import ApiKeys
from taskflux.tasks.access import Scope, stored
from tests.integration.store.scene import Scene

ALL = {Scope.SUBMIT, Scope.READ}


@pytest.fixture
def table(database: Database) -> ApiKeys:
    return ApiKeys(database)


async def test_a_key_is_stored_as_its_hash_and_found_by_its_prefix(table: ApiKeys, own_scene: Scene) -> None:
    table = ApiKeys(own_scene.database)
    made = await table.create("billing", "acme", {Scope.SUBMIT}, ["email"], None)
    assert made is not None
    (row,) = await own_scene.sql("SELECT * FROM api_keys")
    assert row["hash"] == hashlib.sha256(made.key.encode()).digest()
    assert made.key not in str(dict(row))
    kept = stored(made.key.encode())
    assert kept is not None
    assert kept.prefix == row["prefix"]
    (usable,) = await table.usable()
    assert usable.stored == kept
    assert usable.principal.tenant == "acme"
    assert usable.principal.scopes == {Scope.SUBMIT}
    assert usable.principal.types == frozenset({"email"})
    assert usable.seconds is None


async def test_every_change_of_a_key_raises_the_revision_and_its_use_does_not(table: ApiKeys) -> None:
    before = await table.revision()
    made = await table.create("a", "default", ALL, None, 60.0)
    assert made is not None
    prefix = made.row["prefix"]
    after_create = await table.revision()
    await table.note_used([prefix])
    assert await table.revision() == after_create > before
    rotated = await table.rotate(prefix, 0.0, None)
    assert rotated is not None
    after_rotate = await table.revision()
    assert await table.revoke(rotated.row["prefix"])
    assert await table.revision() > after_rotate > after_create


async def test_a_rotated_key_may_do_the_same_and_ends_the_other_after_the_overlap(table: ApiKeys) -> None:
    made = await table.create("a", "acme", {Scope.READ}, ["email"], None)
    assert made is not None
    other = await table.rotate(made.row["prefix"], 3600.0, None)
    assert other is not None
    found = {each.stored.prefix: each for each in await table.usable()}
    former, new = found[made.row["prefix"]], found[other.row["prefix"]]
    assert former.seconds is not None
    assert 3500 < former.seconds <= 3600
    assert new.seconds is None
    assert (new.principal.tenant, new.principal.scopes, new.principal.types) == (
        former.principal.tenant,
        former.principal.scopes,
        former.principal.types,
    )
    assert await table.rotate(other.row["prefix"], 0.0, None) is not None
    assert other.row["prefix"] not in {each.stored.prefix for each in await table.usable()}
    assert await table.rotate(other.row["prefix"], 0.0, None) is None


async def test_a_revoked_key_is_listed_and_not_usable(table: ApiKeys) -> None:
    made = await table.create("a", "acme", ALL, None, None)
    assert made is not None
    assert await table.revoke(made.row["prefix"])
    assert not await table.revoke(made.row["prefix"])
    assert not await table.revoke("nothingthere")
    assert await table.usable() == []
    assert await table.list(None, all=False) == []
    (row,) = await table.list("acme", all=True)
    assert row["revoked_at"] is not None
    assert await table.list("other", all=True) == []


async def test_an_expired_key_is_not_usable(table: ApiKeys) -> None:
    assert await table.create("a", "default", ALL, None, 0.0) is not None
    assert await table.usable() == []


async def test_there_are_no_more_keys_than_every_process_can_hold(
    table: ApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "MOST", 2)
    first = await table.create("a", "default", ALL, None, None)
    assert first is not None
    assert await table.create("b", "default", ALL, None, None) is not None
    assert await table.create("c", "default", ALL, None, None) is None
    await table.revoke(first.row["prefix"])
    assert await table.create("c", "default", ALL, None, None) is not None


async def test_a_key_that_is_being_replaced_shuts_out_no_other(table: ApiKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MOST", 2)
    first = await table.create("a", "default", ALL, None, None)
    second = await table.create("b", "default", ALL, None, None)
    assert first is not None
    assert second is not None
    new = await table.rotate(first.row["prefix"], 3600.0, None)
    assert new is not None
    expected = {each.row["prefix"] for each in (first, second, new)}
    assert {each.stored.prefix for each in await table.usable()} == expected


async def test_use_is_noted_to_the_minute(table: ApiKeys) -> None:
    made = await table.create("a", "default", ALL, None, None)
    assert made is not None
    await table.note_used([made.row["prefix"], "nothingthere"])
    row = await table.get(made.row["prefix"])
    assert row is not None
    assert row["last_used_at"].second == 0


async def test_two_processes_learn_of_a_revoked_key_with_their_next_read(table: ApiKeys) -> None:
    made = await table.create("a", "default", ALL, None, None)
    assert made is not None
    replicas = [Access("required", table), Access("required", table)]
    headers = {b"x-api-key": made.key.encode()}
    await asyncio.gather(*(each.refresh() for each in replicas))
    assert all(each.known(headers) is not None for each in replicas)
    await table.revoke(made.row["prefix"])
    await asyncio.gather(*(each.refresh() for each in replicas))
    assert all(each.known(headers) is None for each in replicas)


async def test_a_change_that_commits_late_is_not_missed(own_scene: Scene) -> None:
    """The revision's row is locked until the change is committed: a number never hides a change before it."""
    table = ApiKeys(own_scene.database)
    made = await table.create("a", "default", ALL, None, None)
    assert made is not None
    replica = Access("required", table)
    await replica.refresh()
    transaction = own_scene.direct.transaction()
    await transaction.start()
    await own_scene.direct.execute("UPDATE api_keys SET revoked_at = now() WHERE prefix = $1", made.row["prefix"])
    other = asyncio.create_task(table.create("b", "default", ALL, None, None))
    await asyncio.sleep(0)
    await replica.refresh()
    assert replica.known({b"x-api-key": made.key.encode()}) is not None
    await transaction.commit()
    await other
    await replica.refresh()
    assert replica.known({b"x-api-key": made.key.encode()}) is None
