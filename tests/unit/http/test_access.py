"""Who may call: keys in memory, every way to send one, scopes, task types, and keys that change."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import pytest
from starlette.routing import Route

from taskflux.http import access
from taskflux.http.access import Access, Guarded, access_for
from taskflux.http.app import create_app
from taskflux.http.dead_letters import DeadLetterRoutes
from taskflux.http.openapi.operations import API, needs
from taskflux.http.receipts import Msg91Webhook
from taskflux.http.submissions import Submissions
from taskflux.http.tasks import TaskRoutes
from taskflux.store.errors import StoreUnavailable
from taskflux.store.keys import UsableKey
from taskflux.tasks.access import Principal, Scope, StoredKey, scopes_of, stored
from tests.keys import AUTH, HEADERS
from tests.unit.http.letters import letter
from tests.unit.http.memory import Fixture, problem

PUBLIC: Final = {"/", "/docs", "/openapi.json", "/problems", "/problems/{slug}", "/livez", "/readyz"}
"""What needs no key: what it says is the same for everybody, or in the code."""
SIGNED: Final = {"/webhooks/msg91/{secret}"}
"""What a secret of its own protects."""


def key_of(letter: str) -> str:
    return f"tf_{letter * 12}_{letter.upper() * 43}"


class Table:
    """A table of keys in memory."""

    def __init__(self) -> None:
        self.keys: dict[str, tuple[Principal, float | None]] = {}
        self.number = 1
        self.reads = self.asked = 0
        self.away = False
        self.used: list[list[str]] = []

    def make(self, name: str, *scopes: str, seconds: float | None = None, **more: Any) -> dict[str, str]:
        """A new key; the headers that send it."""
        key = key_of(name)
        self.keys[key] = (Principal(f"key:{name}", scopes=scopes_of(scopes), **more), seconds)
        self.number += 1
        return {"authorization": f"Bearer {key}"}

    def revoke(self, name: str) -> None:
        del self.keys[key_of(name)]
        self.number += 1

    async def revision(self) -> int:
        self.asked += 1
        if self.away:
            raise StoreUnavailable("away")
        return self.number

    async def usable(self) -> list[UsableKey]:
        self.reads += 1
        found = []
        for key, (principal, seconds) in self.keys.items():
            kept = stored(key.encode())
            assert kept is not None
            found.append(UsableKey(kept, principal, seconds))
        return found

    async def note_used(self, prefixes: list[str]) -> None:
        self.used.append(prefixes)


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(access, "monotonic", time)
    return time


@pytest.fixture
def table() -> Table:
    return Table()


def guarded_by(table: Any, mode: access.Mode = "required", **fixed: Principal) -> Access:
    return Access(mode, table, fixed)


@pytest.fixture
async def http(table: Table, clock: Time) -> AsyncIterator[Fixture]:
    async with closing(Fixture(access=guarded_by(table))) as fixture:
        yield fixture


class closing:
    def __init__(self, fixture: Fixture) -> None:
        self.fixture = fixture

    async def __aenter__(self) -> Fixture:
        return self.fixture

    async def __aexit__(self, *error: object) -> None:
        await self.fixture.client.aclose()


TASK: Final = {"taskType": "simulated", "payload": "x"}


async def test_with_no_key_yet_the_answer_says_how_to_make_the_first(http: Fixture) -> None:
    answer = await http.submit(TASK)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "taskflux keys create" in problem(answer)["detail"]
    assert "kubectl exec" in problem(answer)["detail"]


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
async def test_a_key_is_taken_in_either_header(http: Fixture, table: Table, name: str) -> None:
    key = table.make("a", "submit")["authorization"].removeprefix("Bearer ")
    sent = {"authorization": f"bearer {key}"} if name == "authorization" else {name: key}
    assert (await http.client.post("/tasks", json=TASK, headers=sent)).status_code == 202


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Basic dXNlcjpwYXNz")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer  ")],
        [("authorization", f"Bearer {key_of('b')}")],
        [("authorization", f"Bearer {key_of('a')}x")],
        [("authorization", f"Bearer tf_{'a' * 12}_{'B' * 43}")],
        [("x-api-key", "")],
        [("x-api-key", key_of("a")), ("authorization", f"Bearer {key_of('a')}")],
        [("x-api-key", key_of("a")), ("x-api-key", key_of("a"))],
        [("authorization", f"Bearer {key_of('a')}"), ("authorization", f"Bearer {key_of('b')}")],
    ],
)
async def test_whatever_is_not_one_valid_key_is_refused(
    http: Fixture, table: Table, headers: list[tuple[str, str]]
) -> None:
    table.make("a", "admin")
    answer = await http.client.post("/tasks", json=TASK, headers=httpx.Headers(headers))
    assert answer.status_code == 401, answer.text
    assert not http.intake.accepted
    assert key_of("a") not in answer.text


async def test_a_missing_scope_is_named(http: Fixture, table: Table) -> None:
    headers = table.make("a", "read")
    answer = await http.client.post("/tasks", json=TASK, headers=headers)
    assert answer.status_code == 403
    assert problem(answer)["scope"] == "submit"
    assert "submit" in problem(answer)["detail"]


async def test_every_route_needs_a_key_unless_it_is_listed_as_public() -> None:
    nobody: Any = None
    submissions = Submissions(nobody, nobody)
    tasks, letters = TaskRoutes(nobody, nobody, nobody), DeadLetterRoutes(nobody, submissions)
    webhook = Msg91Webhook(lambda: "secret", nobody, nobody)
    app = create_app(submissions, tasks, letters, webhook, nobody, access=guarded_by(None))
    open_paths = {route.path for route in app.routes if isinstance(route, Route) and not isinstance(route, Guarded)}
    assert open_paths == PUBLIC | SIGNED
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://taskflux") as client:
        for route in app.routes:
            if not isinstance(route, Guarded):
                continue
            path = re.sub(r"{\w+}", "01890a5d-ac96-774b-bcce-b302099a8057", route.path)
            for method in route.methods or ():
                answer = await client.request(method, path)
                assert answer.status_code == 401, (method, path)
    scopes = needs(API)
    guarded = {route.name: route.need for route in app.routes if isinstance(route, Guarded)}
    assert guarded == {name: scope for name, scope in scopes.items() if scope is not None}


async def test_what_was_read_is_used_without_a_question(http: Fixture, table: Table) -> None:
    headers = table.make("a", "submit")
    for _ in range(10):
        assert (await http.client.post("/tasks", json=TASK, headers=headers)).status_code == 202
    assert (table.asked, table.reads) == (1, 1)


async def test_a_new_key_works_at_once_and_unknown_ones_cost_one_question_a_second(
    http: Fixture, table: Table, clock: Time
) -> None:
    first = table.make("a", "submit")
    assert (await http.client.post("/tasks", json=TASK, headers=first)).status_code == 202
    clock.now += 1.0
    second = table.make("b", "submit")
    assert (await http.client.post("/tasks", json=TASK, headers=second)).status_code == 202
    asked = table.asked
    for _ in range(20):
        wrong = {"x-api-key": key_of("c")}
        assert (await http.client.post("/tasks", json=TASK, headers=wrong)).status_code == 401
    assert table.asked == asked
    clock.now += 1.0
    assert (await http.client.post("/tasks", json=TASK, headers={"x-api-key": key_of("c")})).status_code == 401
    assert table.asked == asked + 1


async def test_a_revoked_key_ends_with_the_next_read(http: Fixture, table: Table) -> None:
    headers = table.make("a", "submit")
    assert (await http.client.post("/tasks", json=TASK, headers=headers)).status_code == 202
    table.revoke("a")
    await http.access.refresh()
    assert (await http.client.post("/tasks", json=TASK, headers=headers)).status_code == 401


async def test_keys_that_cannot_be_read_for_eight_seconds_are_used_no_more(
    http: Fixture, table: Table, clock: Time
) -> None:
    headers = table.make("a", "submit")
    assert (await http.client.post("/tasks", json=TASK, headers=headers)).status_code == 202
    table.away = True
    clock.now += access.MOST_AGE - 0.1
    assert (await http.client.post("/tasks", json=TASK, headers=headers)).status_code == 202
    clock.now += 0.2
    answer = await http.client.post("/tasks", json=TASK, headers=headers)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert access.MOST_AGE + access.REFRESH <= 10.0  # what docs/security.md promises


async def test_a_key_ends_when_it_expires_without_a_read(http: Fixture, table: Table, clock: Time) -> None:
    headers = table.make("a", "submit", seconds=3.0)
    assert (await http.client.post("/tasks", json=TASK, headers=headers)).status_code == 202
    clock.now += 3.1
    assert (await http.client.post("/tasks", json=TASK, headers=headers)).status_code == 401


async def test_a_key_that_is_bound_to_types_submits_no_other(http: Fixture, table: Table) -> None:
    headers = table.make("a", "submit", "read", types=frozenset({"email"}))
    answer = await http.client.post("/tasks", json=TASK, headers=headers)
    assert answer.status_code == 403
    assert problem(answer)["types"] == ["email"]
    batch = await http.client.post("/tasks/batch", json=[TASK], headers=headers)
    assert [each["status"] for each in batch.json()] == [403]
    assert (await http.client.get("/tasks", headers=headers)).status_code == 403
    assert not http.intake.accepted


async def test_a_submission_belongs_to_its_key_s_tenant(http: Fixture, table: Table) -> None:
    headers = table.make("a", "submit", tenant="acme")
    await http.client.post("/tasks", json=TASK, headers=headers)
    await http.client.post("/tasks/batch", json=[TASK, TASK], headers=headers)
    assert [each.tenant for each in http.intake.accepted] == ["acme"] * 3


async def test_a_payload_is_shown_only_with_its_scope(http: Fixture, table: Table) -> None:
    row = letter()
    http.letters.rows[row["id"]] = row
    blind, seeing = table.make("a", "read"), table.make("b", "read", "payload")
    hidden = (await http.client.get(f"/dead-letters/{row['id']}", headers=blind)).json()
    shown = (await http.client.get(f"/dead-letters/{row['id']}", headers=seeing)).json()
    assert (hidden["payload"], hidden["payloadHidden"]) == (None, True)
    assert shown["payload"]["to"] == "ada@example.org"
    assert "payloadHidden" not in shown


async def test_use_is_noted_once_for_all_calls(http: Fixture, table: Table) -> None:
    headers = table.make("a", "submit")
    for _ in range(3):
        await http.client.post("/tasks", json=TASK, headers=headers)
    await http.access.note_used()
    await http.access.note_used()
    assert table.used == [["a" * 12]]


async def test_a_key_from_the_settings_works_without_a_table() -> None:
    async with closing(Fixture(access=access_for(AUTH, None))) as http:
        assert (await http.client.post("/tasks", json=TASK, headers=HEADERS)).status_code == 202
        assert (await http.client.post("/tasks", json=TASK)).status_code == 401


async def test_where_it_is_optional_a_call_without_a_key_does_everything_and_a_wrong_key_nothing(
    table: Table, clock: Time
) -> None:
    async with closing(Fixture(access=guarded_by(table, "optional"))) as http:
        assert (await http.client.post("/tasks", json=TASK)).status_code == 202
        wrong = {"x-api-key": key_of("c")}
        assert (await http.client.post("/tasks", json=TASK, headers=wrong)).status_code == 401
        bound = table.make("a", "read")
        clock.now += 1.0
        assert (await http.client.post("/tasks", json=TASK, headers=bound)).status_code == 403


@pytest.mark.parametrize("mode", ["off", "optional"])
def test_whoever_asks_for_no_key_is_told_at_the_start(mode: Any, caplog: pytest.LogCaptureFixture) -> None:
    access_for(AUTH.model_copy(update={"mode": mode}), None)
    assert "TASKFLUX_AUTH__MODE" in caplog.text


def test_admin_has_every_scope_and_a_scope_of_a_later_release_gives_nothing() -> None:
    assert scopes_of(["admin"]) == frozenset(Scope)
    assert scopes_of(["read", "fly"]) == {Scope.READ}


@pytest.mark.parametrize(
    "text", ["", "tf_", "tf_abc_def", f"tf_{'A' * 12}_{'a' * 43}", f"tf_{'a' * 12}_{'a' * 42}", "é"]
)
def test_what_is_not_a_key_is_not_looked_for(text: str) -> None:
    assert stored(text.encode()) is None
    assert isinstance(stored(key_of("a").encode()), StoredKey)


async def test_a_deployment_s_own_types_are_described_to_those_with_a_key(http: Fixture, table: Table) -> None:
    await http.registry.refresh()
    headers = table.make("a", "submit")
    assert (await http.client.post("/tasks", json=TASK, headers=headers)).status_code == 202
    stranger, known = [(await http.client.get("/openapi.json", headers=sent)).json() for sent in ({}, headers)]
    assert stranger["paths"] == known["paths"]
    assert len(stranger["components"]["schemas"]) < len(known["components"]["schemas"])
