"""A whole run with failures of every sort, at DEBUG and with every span recorded: what was sent is in no output."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio

from taskflux.local.ports import free_port
from taskflux.stream.envelope import OutRecord
from tests.integration.providers.flow_api import Answer
from tests.integration.providers.smtp_server import Postbox, smtp_server
from tests.integration.system.stack import Stack, eventually
from tests.integration.tracing.scene import Scene
from tests.keys import HEADERS

MODULE = """
from pydantic import BaseModel

from taskflux import Ambiguous, Receipt, RetryPolicy, Task, Transient, handler


class Letter(BaseModel):
    text: str
    then: str = ""


@handler("letter", payload=Letter, retry=RetryPolicy(max_attempts=2, first_delay=0.01))
async def letter(task: Task[Letter]) -> Receipt:
    said = task.payload.text
    match task.payload.then:
        case "crash":
            raise RuntimeError(f"cannot read {said}")
        case "chain":
            try:
                int(said)
            except ValueError as error:
                raise LookupError(said) from error
        case "group":
            raise ExceptionGroup(said, [KeyError(said), OSError(said)])
        case "transient":
            raise Transient(said, progress={"said": said})
        case "ambiguous":
            raise Ambiguous(said)
        case "odd":
            return said
        case "unstorable":
            return Receipt({said: object()})
    return Receipt({"said": said})
"""
ENDINGS = ("crash", "chain", "group", "transient", "ambiguous", "odd", "unstorable", "")


class People:
    """Everything that is sent, none of which may be logged; each once, so that a leak shows its source."""

    def __init__(self) -> None:
        self.marks: list[str] = []

    def _mark(self, text: str) -> str:
        self.marks.append(text)
        return text

    def address(self) -> str:
        """An e-mail address."""
        return f"{self._mark('zz' + uuid4().hex[:12])}@people.example"

    def number(self) -> str:
        """A phone number."""
        return self._mark(f"9198{uuid4().int % 10**8:08d}")

    def words(self) -> str:
        """A name, subject or body."""
        return f"Dear {self._mark('qq' + uuid4().hex[:12])}"

    def mail(self, **more: Any) -> dict[str, Any]:
        """A whole mail."""
        return {"to": [self.address()], "subject": self.words(), "body": self.words(), "html": self.words()} | more

    def text(self) -> dict[str, Any]:
        """A whole short message."""
        return {"mobile": self.number(), "name": self.words(), "variables": {"code": self.words()}}


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def people(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> People:
    """All recipients of a finished run."""
    people = People()
    await mails(scene, people)
    await texts(scene, people)
    await requests(scene, people)
    await records(scene, people)
    await crashes(scene, people, tmp_path_factory.mktemp("letters"))
    await wrong_credentials(scene, people)
    return people


async def mails(scene: Scene, people: People) -> None:
    """Delivered, refused, deferred, and answered with a text that repeats the recipient."""
    good = people.mail(cc=[people.address()], bcc=[people.address()], replyTo=people.address())
    refused, deferred, echoed = people.mail(), people.mail(), people.mail()
    scene.postbox.replies[refused["to"][0]] = [f"550 5.1.1 <{refused['to'][0]}> does not live here"]
    scene.postbox.replies[deferred["to"][0]] = [f"450 4.2.0 <{deferred['to'][0]}> is asleep"]
    ids = [await scene.submit("email", each, key=people.words(), metadata={"who": people.words()}) for each in (good,)]
    ids += [await scene.submit("email", each) for each in (refused, deferred)]
    for task in ids:
        await scene.stack.until(task, "succeeded", "dead")
    scene.postbox.replies["DATA"] = [f"554 5.6.0 {echoed['subject']} is not wanted by {echoed['to'][0]}"]
    task = await scene.submit("email", echoed)
    document = await scene.stack.until(task, "dead")
    assert echoed["to"][0] in json.dumps(document["error"])  # at rest it is kept
    letter = (await scene.stack.dead_letter(task))["id"]
    await scene.post(f"/dead-letters/{letter}/replay", {"payload": people.mail()}, 202)
    await scene.stack.until(task, "succeeded")
    other = await scene.submit("email", people.mail(headers={"X-Note": people.words()}))
    await scene.stack.until(other, "succeeded")


async def texts(scene: Scene, people: People) -> None:
    """Taken, refused with the number in the words, and lost."""
    for status, said in (
        (200, '{{"type": "success", "message": "req-7"}}'),
        (200, '{{"type": "error", "message": "{mobile} is no mobile", "code": "101"}}'),
        (200, "<html>{mobile} {name}</html>"),
        (500, '{{"type": "error", "message": "{name} was sent"}}'),
    ):
        text = people.text()
        scene.flow.answers.append(Answer(said.format(**text).encode(), status))
        asked = len(scene.flow.taken)
        await scene.submit("sms", text)

        async def answered(asked: int = asked) -> bool:
            return len(scene.flow.taken) > asked

        await eventually(answered, "MSG91 is asked")
    task = await scene.submit("sms", people.text())
    await scene.stack.until(task, "succeeded")
    report = [{"requestId": "x", "report": [{"number": people.number(), "status": "1", "CRQID": str(task)}]}]
    answer = await scene.stack.client.post("/webhooks/msg91/very-secret-path", data={"data": json.dumps(report)})
    assert answer.status_code == 200, answer.text


async def requests(scene: Scene, people: People) -> None:
    """What ingest refuses, in every place of a request."""
    client = scene.stack.client
    for document, status in (
        ({"taskType": "email", "payload": people.mail(to=[people.words()])}, 422),
        ({"taskType": "email", "payload": {people.words(): people.address()}}, 422),
        ({"taskType": people.words(), "payload": {}}, 422),
        ({"taskType": "simulated", "payload": people.words(), people.words(): 1}, 422),
        ({"taskType": "simulated", "payload": people.words(), "metadata": {"name": "\0" + people.words()}}, 202),
        ({"taskType": "simulated", "payload": people.words(), "key": "\ud800" + people.words()}, 422),
        ({"taskType": "simulated", "payload": people.words(), "scheduleAt": people.words()}, 422),
    ):
        answer = await client.post("/tasks", content=json.dumps(document), headers={"content-type": "application/json"})
        assert answer.status_code == status, answer.text
    broken = f'{{"taskType": "email", "payload": "{people.words()}'
    assert (
        await client.post("/tasks", content=broken, headers={"content-type": "application/json"})
    ).status_code == 400
    repeated = {"Idempotency-Key": people.words()}
    for status in (202, 422):
        document = {"taskType": "simulated", "payload": people.words()}
        assert (await client.post("/tasks", json=document, headers=repeated)).status_code == status
    batch = [{"taskType": "email", "payload": people.mail()}, {"taskType": "email", "payload": people.words()}]
    assert (await client.post("/tasks/batch", json=batch)).status_code == 202
    for path in (f"/tasks/{people.address()}", f"/{people.address()}", f"/dead-letters/{people.address()}"):
        assert (await client.get(path)).status_code == 404
    assert (await client.get("/tasks", params={"status": people.words(), "who": people.address()})).status_code == 422
    assert (await client.post(f"/webhooks/msg91/{people.words()}", data={"data": people.number()})).status_code == 404
    async with httpx.AsyncClient(base_url=scene.notify_url, trust_env=False, headers=HEADERS) as notify:
        for channel, body, status in (
            ("email", people.mail(), 200),
            ("sms", people.text(), 200),
            ("email", people.mail(to=people.words()), 422),
            ("sms", {"mobile": people.words()}, 422),
        ):
            name = {"Taskflux-Task-Id": "n" + people.number()}
            answer = await notify.post(f"/notifications/{channel}", json=body, headers=name)
            assert answer.status_code == status, answer.text


async def records(scene: Scene, people: People) -> None:
    """What other producers write: tasks and poison."""
    topic, stack = scene.stack.topic("email"), scene.stack
    before = await _letters(stack)
    poison = [
        people.words().encode(),
        json.dumps({"taskType": "email", "taskId": people.words() * 40, "payload": people.mail()}).encode(),
        json.dumps({"taskType": people.words(), "payload": people.mail()}).encode(),
        json.dumps({"taskType": "email", "text": people.words()}).encode(),
    ]
    header = (("who", people.address().encode()), ("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-01".encode()))
    await stack.produce(*(OutRecord(topic, people.address().encode(), value, header) for value in poison))
    wrong = json.dumps({"taskType": "email", "taskId": people.words(), "payload": {"to": people.words()}})
    right = json.dumps({"taskType": "email", "taskId": people.words(), "payload": people.mail()})
    await stack.produce(*(OutRecord(topic, None, value.encode()) for value in (wrong, right, right)))

    async def stored() -> bool:
        return await _letters(stack) >= before + len(poison) + 1

    await eventually(stored, "the dead letters of what was no task")
    rows = await stack.sql.fetch("SELECT traceparent FROM dead_letters WHERE record_value = ANY($1)", poison)
    assert {row["traceparent"] for row in rows} == {header[1][1].decode()}


async def _letters(stack: Stack) -> int:
    count: int = await stack.sql.fetchval("SELECT count(*) FROM dead_letters")
    return count


async def crashes(scene: Scene, people: People, folder: Path) -> None:
    """An application's handler that raises what it was sent."""
    (folder / "my_letters.py").write_text(MODULE)
    target = "my_letters:letter"
    scene.spawn(target, "letter", PYTHONPATH=f"{folder}:{Path.cwd()}")
    await scene.ready("letter")

    async def known() -> bool:
        answer = await scene.stack.client.post("/tasks", json={"taskType": "letter", "payload": {"text": "first"}})
        return answer.status_code == 202

    await eventually(known, "the type is known")
    tasks = [await scene.submit("letter", {"text": people.words(), "then": then}) for then in ENDINGS]
    for task in tasks:
        await scene.stack.until(task, "succeeded", "dead")


async def wrong_credentials(scene: Scene, people: People) -> None:
    """Providers that refuse us, and settings that cannot be used."""
    password = people.words()
    async with smtp_server(Postbox(("user", "right"))) as guarded:
        port = free_port()
        scene.spawn(
            "notify",
            "guarded",
            TASKFLUX_HTTP__PORT=str(port),
            TASKFLUX_SMTP__HOST="127.0.0.1",
            TASKFLUX_SMTP__PORT=str(guarded.port),
            TASKFLUX_SMTP__TLS="none",
            TASKFLUX_SMTP__USERNAME=people.address(),
            TASKFLUX_SMTP__PASSWORD=password,
            TASKFLUX_SMTP__SENDER="tasks@example.org",
        )
        await scene.ready("guarded")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, headers=HEADERS) as notify:
            answer = await notify.post("/notifications/email", json=people.mail())
            assert (answer.status_code, answer.json()["errorClass"]) == (502, "Misconfigured"), answer.text
    child = scene.spawn("process-sms", "keyless")
    assert await child.wait() != 0
    assert "TASKFLUX_MSG91__AUTH_KEY" in scene.log("keyless")
    assert "Traceback" not in scene.log("keyless")
    scene.children.pop("keyless")  # it prints a message for a person


async def test_no_log_line_no_span_and_no_metric_holds_what_was_sent(scene: Scene, people: People) -> None:
    said = {name: scene.log(name) for name in scene.children}
    said["spans"] = b"".join(scene.receiver.raw).decode("latin-1")
    said["metrics"] = (await scene.stack.client.get("/metrics")).text
    assert len(people.marks) > 60
    secrets = [*people.marks, "people.example", "very-secret-path", "let-me-in"]
    leaks = [
        (name, secret, _around(text, secret)) for name, text in said.items() for secret in secrets if secret in text
    ]
    assert leaks == []


async def test_no_traceback_is_written_without_its_task_or_request(scene: Scene, people: People) -> None:
    frames = re.compile(r'File \\?".*\\?", line \d+')
    tracebacks = [line for name in scene.children for line in scene.lines(name) if frames.search(json.dumps(line))]
    assert {line["handler"] for line in tracebacks} >= {"letter"}
    assert [line for line in tracebacks if not line.keys() & {"task_id", "trace_id", "task_ids"}] == []
    assert [line for line in tracebacks if line["handler"] == "letter" and "task_id" not in line] == []


async def test_every_process_writes_whole_json_lines_only(scene: Scene, people: People) -> None:
    for name in scene.children:
        for line in scene.lines(name):
            assert {"time", "level", "logger", "message", "handler"} <= line.keys(), line


async def test_probes_leave_no_line_and_no_span(scene: Scene, people: People) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert (await scene.stack.client.get(path)).status_code == 200
    told = {line["message"] for line in scene.lines("ingest") if line["logger"] == "taskflux.http.requests"}
    assert "POST /tasks" in told
    assert "POST /webhooks/msg91/{secret}" in told
    assert not any(path in text for path in ("livez", "readyz", "metrics") for text in told)
    assert not any(path in span.name for path in ("livez", "readyz", "metrics") for span in scene.receiver.spans)


def _around(text: str, secret: str) -> str:
    at = text.index(secret)
    return text[max(0, at - 300) : at + 100]
