"""One e-mail, one SMS and one simulated task, sent as a client sends them, and what became of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import httpx

from taskflux.local.console import Console

WAIT: Final = 60.0
"""Seconds after which a sample that has not succeeded is given up."""

SAMPLES: Final[tuple[dict[str, Any], ...]] = (
    {
        "taskType": "email",
        "payload": {
            "to": "ada@example.org",
            "subject": "Hello from TaskFlux",
            "body": "This mail went through PostgreSQL, Kafka and a handler, and did not leave your machine.\n",
            "html": "<h2>Hello from TaskFlux</h2><p>This mail went through PostgreSQL, Kafka and a handler,"
            " and did not leave your machine.</p>",
        },
    },
    {"taskType": "sms", "payload": {"mobile": "919800000000", "name": "Ada"}},
    {"taskType": "simulated", "payload": {"delayMs": 250}},
)
_ENDED: Final = frozenset({"succeeded", "dead", "cancelled", "uncertain"})


async def send(
    base_url: str, console: Console, inbox: str | None, samples: Sequence[Mapping[str, Any]] = SAMPLES
) -> bool:
    """Submit the samples to ingest at `base_url`, show each one's timeline; True when all succeeded.

    `inbox` is the address of the inbox where mail and SMS can be seen, if they go there.
    """
    async with httpx.AsyncClient(base_url=base_url, timeout=10.0, trust_env=False) as client:
        followed = [asyncio.create_task(_follow(client, sample)) for sample in samples]
        try:
            good = True
            for sample, following in zip(samples, followed, strict=True):
                good &= _show(console, str(sample["taskType"]), await following)
                if inbox is not None and sample["taskType"] in ("email", "sms"):
                    await _show_where(client, console, inbox, sample)
        finally:
            for following in followed:
                following.cancel()
    if not good:
        console.warning("samples", "not every sample succeeded: the lines above and the logs say why")
    return good


async def _follow(client: httpx.AsyncClient, sample: Mapping[str, Any]) -> dict[str, Any]:
    """Submit one and ask after it until it has ended or `WAIT` is over; its last known state, or a `problem`."""
    deadline = time.monotonic() + WAIT
    task: dict[str, Any] = {}
    try:
        answer = await client.post("/tasks", json=dict(sample))
        if answer.status_code != 202:
            return {"problem": f"refused with {answer.status_code}: {answer.text[:200]}"}
        where = f"/tasks/{answer.json()['taskId']}"
        while task.get("status") not in _ENDED:
            if time.monotonic() > deadline:
                return {**task, "problem": f"has not ended within {WAIT:.0f} s"}
            await asyncio.sleep(0.1)
            found = await client.get(where)
            if found.status_code == 200:
                task = found.json()
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return {**task, "problem": f"cannot be followed: {type(error).__name__} {error}".rstrip()}
    return task


def _show(console: Console, name: str, task: dict[str, Any]) -> bool:
    """The task's timeline as lines; True when it succeeded."""
    status = str(task.get("status", "unknown"))
    good = status == "succeeded"
    took = duration(task)
    text = task.get("problem") or (status + (f" after {took}" if took and good else ""))
    console.outcome(name, f"{console.bold(str(text))}  {console.soft(str(task.get('taskId', '')))}", good)
    for line in timeline(task.get("timeline") or []):
        console.line(f"      {console.soft(line)}")
    if not good and task.get("error"):
        console.line(f"      {task['error']}")
    return good


def timeline(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """A timeline as lines: seconds since its beginning, the state, what happened, and what was noted with it."""
    if not entries:
        return []
    began = datetime.fromisoformat(str(entries[0]["at"]))
    lines = []
    for entry in entries:
        since = (datetime.fromisoformat(str(entry["at"])) - began).total_seconds()
        attempt = f"attempt {entry['attempt']}" if entry.get("attempt") else ""
        beside = " · ".join(str(each) for each in (entry.get("event"), attempt, entry.get("note")) if each)
        lines.append(f"{since:8.3f} s  {entry.get('state', ''):<10} {beside}".rstrip())
    return lines


def duration(task: Mapping[str, Any]) -> str:
    """How long the timeline spans, for people; empty without one."""
    entries = task.get("timeline") or []
    if not entries:
        return ""
    first, last = (datetime.fromisoformat(str(entries[at]["at"])) for at in (0, -1))
    return f"{(last - first).total_seconds():.2f} s"


async def _show_where(client: httpx.AsyncClient, console: Console, inbox: str, sample: Mapping[str, Any]) -> None:
    """The address of the newest message of this kind in the inbox."""
    try:
        answer = await client.get(f"{inbox}/api/messages", params={"kind": str(sample["taskType"]), "limit": 1})
        newest = answer.json()["messages"]
    except (httpx.HTTPError, ValueError, KeyError):
        return
    if newest:
        console.line(f"      {console.soft('to be seen at')} {inbox}/#{newest[0]['id']}")
