"""The description of the API: valid, current, complete, and true where it can be tried without a store."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from taskflux.cli.reference import static_document
from taskflux.http.app import create_app
from taskflux.http.dead_letters import DeadLetterRoutes
from taskflux.http.notifications import NOTIFY as NOTIFY_API
from taskflux.http.notifications import Notify, create_notify_app, notify_document
from taskflux.http.openapi.document import CONNECTION, KEY, Operation, documentation_routes, policy, start_route
from taskflux.http.openapi.operations import API, api_document
from taskflux.http.openapi.schemas import NEW_TASK
from taskflux.http.problems import EXPLANATIONS, KINDS
from taskflux.http.receipts import Msg91Webhook
from taskflux.http.submissions import FIELDS, Submissions
from taskflux.http.tasks import TaskRoutes
from taskflux.providers.email import Email
from taskflux.providers.sms import Sms
from taskflux.tasks.model import TaskType
from taskflux.worker.loading import built_in_handlers
from tests.keys import OPEN
from tests.unit.http.memory import Fixture

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
FILE = Path(__file__).parents[3] / "docs" / "openapi.json"
DOCUMENT: dict[str, Any] = json.loads(static_document())
NOTIFY = notify_document()
DOCUMENTS = pytest.mark.parametrize("document", [DOCUMENT, NOTIFY], ids=["ingest", "notify"])


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def media(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every media type object with the place where it stands."""
    for name, operation in operations(document):
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            yield f"{name} {media_type}", content
        for status, answer in operation["responses"].items():
            for media_type, content in followed(document, answer).get("content", {}).items():
                yield f"{name} {status} {media_type}", content


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def resolve(document: dict[str, Any], reference: str) -> Any:
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def followed(document: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """What stands here, or where this refers to."""
    found: dict[str, Any] = resolve(document, value["$ref"]) if "$ref" in value else value
    return found


def validator(document: dict[str, Any], schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]}, validate_formats=True)


def test_the_file_is_current_make_docs_writes_it() -> None:
    assert FILE.read_text(encoding="utf-8") == static_document()


@DOCUMENTS
def test_every_schema_is_one_and_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate({**schema, "$schema": "https://json-schema.org/draft/2020-12/schema"})
    for _, content in media(document):
        jsonschema_rs.meta.validate(content["schema"])
    for reference in set(references(document)):
        assert resolve(document, reference) is not None


@DOCUMENTS
def test_every_path_parameter_is_declared_and_operation_ids_are_unique(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    for name, operation in operations(document):
        declared = {each["name"] for each in operation.get("parameters", []) if each["in"] == "path"}
        assert declared == {part[1:-1] for part in name.split("/") if part.startswith("{")}


@DOCUMENTS
def test_every_example_is_what_its_schema_says(document: dict[str, Any]) -> None:
    for place, content in media(document):
        check = validator(document, content["schema"])
        for name, example in content.get("examples", {}).items():
            errors = [error.message for error in check.iter_errors(followed(document, example)["value"])]
            assert not errors, f"{place}: {name}: {errors}"


def test_a_task_is_described_with_the_fields_that_are_read() -> None:
    assert tuple(NEW_TASK) == FIELDS


def test_every_type_of_ours_is_described_with_its_payload() -> None:
    described = DOCUMENT["components"]["schemas"]
    assert {f"payload.{handler.type}" for handler in built_in_handlers()} <= set(described)


@pytest.mark.parametrize(
    ("task", "valid"),
    [
        ({"payload": "a text"}, True),
        ({"taskType": None, "payload": "a text"}, True),
        ({"payload": {"delayMs": 1}}, False),
        ({"taskType": "simulated", "payload": {"delayMs": -1}}, False),
        ({"taskType": "simulated", "payload": "x", "delaySeconds": 1, "scheduleAt": None}, True),
        ({"taskType": "simulated", "payload": "x", "delaySeconds": 1, "scheduleAt": "2030-01-31T09:00:00Z"}, False),
        ({"taskType": "simulated", "payload": "x", "priority": 1}, False),
        ({"taskType": "sms", "payload": {"mobile": "+919876543210", "name": "Ann"}}, True),
        ({"taskType": "sms", "payload": {"mobile": "98-76", "name": "Ann"}}, False),
        ({"taskType": "unheard-of", "payload": {}}, False),
    ],
)
def test_what_is_described_as_a_task_is_what_is_accepted(task: dict[str, Any], valid: bool) -> None:
    assert validator(DOCUMENT, DOCUMENT["components"]["schemas"]["NewTask"]).is_valid(task) is valid


def test_every_kind_of_problem_is_explained() -> None:
    assert set(EXPLANATIONS) == set(KINDS)


def test_every_kind_of_problem_belongs_to_a_call_or_to_an_unknown_address() -> None:
    told = {slug for document in (DOCUMENT, NOTIFY) for *_, slugs in _refusals(document) for slug in slugs}
    assert set(KINDS) - told == {"method-not-allowed"}


@pytest.mark.parametrize(("document", "described"), [(DOCUMENT, API), (NOTIFY, NOTIFY_API)], ids=["ingest", "notify"])
def test_a_call_lists_exactly_its_own_kinds_of_problem_and_those_of_its_connection(
    document: dict[str, Any], described: Sequence[Operation]
) -> None:
    own = {
        each.id: {kind.slug for kind in (*each.problems, *CONNECTION, *(KEY if each.scope else ()))}
        for each in described
    }
    told: dict[str, set[str]] = {each.id: set() for each in described}
    for operation, status, slugs in _refusals(document):
        assert {KINDS[slug].status for slug in slugs} == {status}
        told[operation] |= slugs
    assert told == own


@DOCUMENTS
def test_every_refusal_and_every_example_of_one_is_in_the_document_once(document: dict[str, Any]) -> None:
    components = document["components"]
    combinations = {frozenset(slugs) for *_, slugs in _refusals(document)}
    assert {frozenset(name.split(".")) for name in components["responses"]} == combinations
    assert len(components["responses"]) == len(combinations)
    assert set(components["examples"]) == {slug for slugs in combinations for slug in slugs}
    examples = [content.get("examples", {}) for _, content in media(document)]
    assert not [named for each in examples for named in each if named in KINDS and "value" in each[named]]


@DOCUMENTS
def test_a_refusal_names_the_types_of_its_problems_and_when_to_try_again(document: dict[str, Any]) -> None:
    for name, answer in document["components"]["responses"].items():
        kinds = [KINDS[slug] for slug in name.split(".")]
        content = answer["content"]["application/problem+json"]
        assert content["schema"]["properties"]["type"]["enum"] == [kind.type for kind in kinds]
        assert list(content["examples"]) == [kind.slug for kind in kinds]
        assert ("Retry-After" in answer.get("headers", {})) is (kinds[0].status in {408, 503})


def _refusals(document: dict[str, Any]) -> Iterator[tuple[str, int, set[str]]]:
    """Each operation with a status of problems, and their slugs."""
    for _, operation in operations(document):
        for status, answer in operation["responses"].items():
            refused = followed(document, answer).get("content", {}).get("application/problem+json")
            if refused is not None:
                yield operation["operationId"], int(status), set(refused["examples"])


def served(app: Starlette) -> set[tuple[str, str, str]]:
    """Every call that an application answers (method, path, id), apart from the pages of the description."""
    pages = {route.path for route in documentation_routes(lambda request: b"")}
    return {
        (method, _unnamed(route.path), route.name)
        for route in app.routes
        if isinstance(route, Route) and route.path not in pages
        for method in (route.methods or set()) - {"HEAD"}
    }


def _unnamed(path: str) -> str:
    return "/".join("{}" if part.startswith("{") else part for part in path.split("/"))


def _described(operations: Sequence[Operation]) -> set[tuple[str, str, str]]:
    return {(each.method, _unnamed(each.path), each.id) for each in operations}


def test_every_route_of_ingest_is_described_and_every_call_that_is_described_is_served() -> None:
    nobody: Any = None  # nothing is called here
    submissions = Submissions(nobody, nobody)
    tasks, letters = TaskRoutes(nobody, nobody, nobody), DeadLetterRoutes(nobody, submissions)
    app = create_app(submissions, tasks, letters, Msg91Webhook(lambda: "secret", nobody, nobody), nobody, access=OPEN)
    assert served(app) == _described(API)


def test_every_route_of_notify_is_described_and_every_call_that_is_described_is_served() -> None:
    nobody: Any = None
    mail, text = Notify(Email, nobody, 0), Notify(Sms, nobody, 0)
    assert served(create_notify_app(mail, text, nobody, nobody, access=OPEN)) == _described(NOTIFY_API)


async def test_a_running_system_describes_the_types_that_it_knows(http: Fixture) -> None:
    http.source.types = {"resize": TaskType("resize", '{"type": "object", "required": ["url"]}', 3, "resend", None)}
    await http.registry.refresh()
    response = await http.client.get("/openapi.json")
    assert response.status_code == 200
    assert response.json()["components"]["schemas"]["payload.resize"] == {"type": "object", "required": ["url"]}


async def test_an_invalid_schema_describes_anything() -> None:
    schemas = api_document({"odd": "no JSON", "list": "[]", "flag": "true"})["components"]["schemas"]
    assert schemas["payload.odd"] == schemas["payload.list"] == schemas["payload.flag"] == {}


async def test_references_inside_a_payload_lead_into_the_document() -> None:
    text = json.dumps({"$ref": "#/$defs/A", "$defs": {"A": {"type": "string"}}})
    document = api_document({"odd": text})
    (reference,) = references(document["components"]["schemas"]["payload.odd"])
    assert resolve(document, reference) == {"type": "string"}


@pytest.mark.parametrize("path", ["/", "/docs", "/problems", *(f"/problems/{slug}" for slug in KINDS)])
async def test_a_page_loads_nothing_from_another_host(path: str, http: Fixture) -> None:
    response = await http.client.get(path, headers=BROWSER)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    text = response.text
    assert "http://" not in text
    assert "https://" not in text
    allowed = response.headers["content-security-policy"]
    assert allowed == policy(text)
    assert allowed.startswith("default-src 'none'")


async def test_a_browser_gets_a_start_page_and_every_other_client_the_same_links_as_json(http: Fixture) -> None:
    page = await http.client.get("/", headers=BROWSER)
    data = await http.client.get("/")
    assert data.headers["content-type"] == "application/json"
    assert page.headers["vary"] == data.headers["vary"] == "Accept"
    assert data.json()["links"] == {"docs": "/docs", "openapi": "/openapi.json", "problems": "/problems"}
    for link in data.json()["links"].values():
        assert f'href="{link}"' in page.text
        assert (await http.client.get(link)).status_code == 200
    assert "Inbox" not in page.text
    schema = DOCUMENT["paths"]["/"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert validator(DOCUMENT, schema).is_valid(data.json())


@pytest.mark.parametrize("headers", [BROWSER, {}], ids=["browser", "other"])
async def test_head_of_the_start_page_has_the_headers_of_get_alone(headers: dict[str, str], http: Fixture) -> None:
    got, head = [await http.client.request(method, "/", headers=headers) for method in ("GET", "HEAD")]
    assert (head.status_code, head.headers) == (200, got.headers)


async def test_beside_an_inbox_the_start_page_links_to_it_and_shows_a_first_task() -> None:
    inbox = 'http://127.0.0.1:8025/?"<'
    app = Starlette(routes=[start_route("TaskFlux", "Accepts tasks.", inbox)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8080") as client:
        text = (await client.get("/", headers=BROWSER)).text
        assert 'href="http://127.0.0.1:8025/?&quot;&lt;"' in text
        assert "curl http://localhost:8080/tasks -H 'Content-Type: application/json' -d '{" in text
        assert (await client.get("/")).json()["links"]["inbox"] == inbox


async def test_the_type_of_a_problem_leads_to_its_explanation(http: Fixture) -> None:
    refused = (await http.client.post("/tasks", json={"taskType": "email", "payload": {}})).json()
    page = await http.client.get(refused["type"])
    assert refused["title"] in page.text
    data = (await http.client.get(refused["type"], headers={"accept": "application/json"})).json()
    assert data["type"] == refused["type"]
    assert data["means"]
    assert (await http.client.get("/problems/unheard-of")).status_code == 404


@pytest.mark.parametrize(
    "sent",
    [
        example["value"]
        for name, operation in operations(DOCUMENT)
        if name == "POST /tasks"
        for example in operation["requestBody"]["content"]["application/json"]["examples"].values()
    ],
    ids=lambda sent: str(sent.get("taskType")),
)
async def test_an_example_of_a_task_is_accepted(sent: dict[str, Any], http: Fixture) -> None:
    http.source.types = {handler.type: handler.task_type() for handler in built_in_handlers()}
    response = await http.submit(sent)
    assert response.status_code == 202, response.text
    answer = DOCUMENT["paths"]["/tasks"]["post"]["responses"]["202"]["content"]["application/json"]["schema"]
    assert validator(DOCUMENT, answer).is_valid(response.json())
