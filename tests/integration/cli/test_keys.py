"""`taskflux keys` against a running system: made, used, refused, replaced, revoked."""

from __future__ import annotations

import httpx
import pytest

from taskflux.http.access import MOST_AGE, REFRESH
from tests.integration.cli.command import Command
from tests.integration.system.stack import Stack, eventually

TASK = {"taskType": "simulated", "payload": "x"}


async def test_a_key_is_made_used_and_revoked(taskflux: Command, stack: Stack) -> None:
    made = await taskflux.here("keys", "create", "first")
    assert made.status == 0, made.err
    key = made.out.strip()
    assert "submit" in made.err
    assert key not in made.err
    prefix = key[:15]
    address = str(stack.client.base_url)
    async with httpx.AsyncClient(base_url=address, trust_env=False, headers={"x-api-key": key}) as client:
        # Made a moment ago, and usable at once, though others keep asking with a key that nobody has.
        wrong = await client.get("/tasks", headers={"x-api-key": f"tf_{'a' * 12}_{'b' * 43}"})
        assert wrong.status_code == 401
        second = (await taskflux.here("keys", "create", "second")).out.strip()
        assert (await client.get("/tasks", headers={"x-api-key": second})).status_code == 200
        assert (await client.get("/tasks")).status_code == 200
        assert (await client.get("/dead-letters")).status_code == 200
        refused = await client.request("DELETE", "/tasks/01890a5d-ac96-774b-bcce-b302099a8057")
        assert (refused.status_code, refused.json()["scope"]) == (403, "operate")
        listed = (await taskflux.here("keys", "list", "--json")).json
        assert [each["name"] for each in listed if each["prefix"] == prefix] == ["first"]
        assert (await taskflux.here("keys", "revoke", prefix)).status == 0

        async def is_refused() -> bool:
            return (await client.get("/tasks")).status_code == 401

        assert MOST_AGE + REFRESH <= 10
        await eventually(is_refused, "the revoked key is refused")
    assert prefix not in (await taskflux.here("keys", "list")).out
    assert "revoked" in (await taskflux.here("keys", "list", "--all")).out


async def test_the_command_sends_its_key_and_says_why_it_is_refused(taskflux: Command, stack: Stack) -> None:
    key = (await taskflux.here("keys", "create", "reader", "--scopes", "read")).out.strip()
    assert (await taskflux.here("tasks", "list", TASKFLUX_API__KEY=key)).status == 0
    assert (await taskflux.here("tasks", "list", "--api-key", key, TASKFLUX_API__KEY="")).status == 0
    refused = await taskflux.here("send", "simulated", "x", TASKFLUX_API__KEY=key)
    assert refused.status == 1
    assert "submit" in refused.err
    nothing = await taskflux.here("tasks", "list", TASKFLUX_API__KEY="")
    assert nothing.status == 1
    assert "taskflux keys create" in nothing.err


async def test_a_rotated_key_leaves_the_other_one_some_time(taskflux: Command) -> None:
    first = (await taskflux.here("keys", "create", "a", "--scopes", "read,operate", "--expires", "90d")).out.strip()
    second = await taskflux.here("keys", "rotate", first, "--overlap", "10m", "--json")
    assert second.json["scopes"] == ["operate", "read"]
    assert second.json["expiresAt"] is None
    for key in (first, second.json["key"]):
        assert (await taskflux.here("tasks", "list", TASKFLUX_API__KEY=key)).status == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create", "x", "--scopes", "fly"], "'fly' is not a scope"),
        (["create", "x", "--types", "Not A Type"], "is not a task type"),
        (["create", "x", "--tenant", "a b"], "a tenant has"),
        (["create", ""], "a name has"),
        (["revoke", "abc"], "is not a key's prefix"),
    ],
)
async def test_what_cannot_be_meant_is_refused(taskflux: Command, words: list[str], said: str) -> None:
    outcome = await taskflux.here("keys", *words)
    assert outcome.status == 2
    assert said in outcome.err


@pytest.mark.parametrize("verb", ["revoke", "rotate"])
async def test_a_key_that_is_not_there_is_named(taskflux: Command, verb: str) -> None:
    outcome = await taskflux.here("keys", verb, "aaaaaaaaaaaa")
    assert outcome.status == 1
    assert "tf_aaaaaaaaaaaa" in outcome.err
