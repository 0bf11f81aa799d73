"""`taskflux send` and `taskflux tasks`: send one, look at tasks, cancel one, decide on one that is uncertain."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from time import sleep
from typing import Any, BinaryIO, Final
from uuid import uuid4

import click

from taskflux.cli.api import Answer, Api, ApiCommand, ApiError, Document, api_option
from taskflux.cli.program import FAILED, OK, STILL_OPEN, UNREACHABLE, Group, leave, url_option
from taskflux.cli.shown import cell, explain_end, json_option, print_json, show_task, show_tasks, tell_more
from taskflux.cli.values import Duration, Id, Moment, Pair, payload_of
from taskflux.tasks.states import ENDED, State

SILENCE: Final = 15.0
"""Seconds that the server may be unreachable while an outcome is waited for."""
_FIRST_LOOK, _LAST_LOOK = 0.1, 2.0


@click.command(cls=ApiCommand)
@click.argument("task_type", metavar="TYPE")
@click.argument("payload", required=False)
@click.option("--file", type=click.File("rb"), help="Read the payload from this file.")
@click.option("--delay", type=Duration(), help="Run it this much later: 90, 10m, 1h30m.")
@click.option("--at", "schedule_at", type=Moment(past=False), help="Run it then: 2030-01-31T09:00:00Z.")
@click.option("--expires", "expires_at", type=Moment(past=False), help="Do not run it after this time.")
@click.option("--key", help="Picks the Kafka partition; promises no order.")
@click.option("--idempotency-key", help="Names this request: sent again with the same key, it creates no second task.")
@click.option("--max-attempts", type=click.IntRange(1, 1000), help="Instead of what the type's handler declares.")
@click.option("--metadata", type=Pair(), multiple=True, help="name=value, kept with the task; may be repeated.")
@click.option("--wait", is_flag=True, help="Wait for the outcome: 0 if it succeeded, 1 if not.")
@click.option("--timeout", type=Duration(), help="With --wait: give up waiting after this time (status 4).")
@json_option
@api_option
def send(
    task_type: str,
    payload: str | None,
    file: BinaryIO | None,
    delay: float | None,
    schedule_at: str | None,
    expires_at: str | None,
    key: str | None,
    idempotency_key: str | None,
    max_attempts: int | None,
    metadata: Sequence[tuple[str, str]],
    wait: bool,
    timeout: float | None,
    as_json: bool,
    api: Api,
) -> None:
    """Send a task of TYPE. PAYLOAD is JSON, or else a plain text; - reads it from stdin.

    \b
    taskflux send email '{"to": "ann@example.org", "subject": "Hi", "body": "Hello"}' --wait
    taskflux send simulated hello --delay 10m
    """
    if delay is not None and schedule_at is not None:
        raise click.UsageError("--delay and --at contradict each other: give one of the two")
    if timeout is not None and not wait:
        raise click.UsageError("--timeout says how long to --wait: give both")
    optional = {
        "delaySeconds": delay,
        "scheduleAt": schedule_at,
        "expiresAt": expires_at,
        "key": key,
        "maxAttempts": max_attempts,
        "metadata": dict(metadata) or None,
    }
    body = {"taskType": task_type, "payload": payload_of(payload, file, sys.stdin.buffer)}
    body |= {name: value for name, value in optional.items() if value is not None}
    answer = _submit(api, body, idempotency_key)
    accepted = answer.document
    if not wait:
        if as_json:
            print_json(accepted)
        else:
            repeated = " (this key was sent before: no second task)" if "idempotent-replay" in answer.headers else ""
            click.echo(f"{accepted['taskId']}{click.style(repeated, dim=True)}")
        return
    if not as_json:
        click.echo(f"{accepted['taskId']} accepted, waiting for its outcome", err=True)
    task = _wait_for(api, accepted["taskId"], timeout)
    if as_json:
        print_json(task)
    else:
        show_task(task)
    if task["status"] != "succeeded":
        leave(explain_end(task), FAILED if task["status"] in ENDED else STILL_OPEN)
    sys.exit(OK)


def _submit(api: Api, body: object, idempotency_key: str | None) -> Answer:
    """Send it; once more where the answer was lost, under a key that makes the second time harmless.

    Raises:
        ApiError: it was refused, or nobody knows: then the text says how to ask again.
    """
    key = idempotency_key or f"cli-{uuid4()}"
    headers = {"Idempotency-Key": key}
    try:
        return api.call("POST", "/tasks", body, headers=headers)
    except ApiError as error:
        if not error.uncertain:
            raise
    try:
        return api.call("POST", "/tasks", body, headers=headers)
    except ApiError as error:
        message = f"{error}\nThe task may have been accepted; to find out, send it again with --idempotency-key {key}"
        raise ApiError(message, error.status) from error


def _wait_for(api: Api, task_id: str, timeout: float | None) -> Document:
    """The task once it has ended, or as it stands when `timeout` seconds have passed.

    A server that is unreachable for a moment (its pod is replaced) is asked again.

    Raises:
        ApiError: it was refused, or the server was unreachable for too long.
    """
    heard = time.monotonic()
    deadline = math.inf if timeout is None else heard + timeout
    pause = _FIRST_LOOK
    while True:
        try:
            task: dict[str, Any] = api.get(f"/tasks/{task_id}")
            heard = time.monotonic()
            if task["status"] in ENDED or heard >= deadline:
                return task
        except ApiError as error:
            if error.status != UNREACHABLE or time.monotonic() >= min(deadline, heard + SILENCE):
                raise
        sleep(max(0.0, min(pause, deadline - time.monotonic())))
        pause = min(pause * 1.5, _LAST_LOOK)


@click.group(cls=Group)
@url_option
def tasks() -> None:
    """Look at tasks, cancel them, decide on uncertain ones."""


@tasks.command(cls=ApiCommand)
@click.argument("task_id", type=Id(), metavar="ID")
@json_option
@api_option
def get(task_id: str, as_json: bool, api: Api) -> None:
    """Show one task: where it stands, its payload, what happened to it."""
    task = api.get(f"/tasks/{task_id}")
    if as_json:
        print_json(task)
    else:
        show_task(task)


@tasks.command(cls=ApiCommand)
@click.argument("task_id", type=Id(), metavar="ID")
@json_option
@api_option
def why(task_id: str, as_json: bool, api: Api) -> None:
    """Say why a task waits: its time, an open circuit, no worker, those before it."""
    document = api.get(f"/tasks/{task_id}/why")
    if as_json:
        print_json(document)
    else:
        for reason in document["reasons"]:
            click.echo(f"{document['status']}: {cell(reason['text'])}")


@tasks.command("list", cls=ApiCommand)
@click.option("--status", type=click.Choice(tuple(state.value for state in State)))
@click.option("--type", "task_type", help="Only this task type.")
@click.option("--after", type=Moment(past=True), help="Accepted after this time, or at most so long ago: 2h.")
@click.option("--before", type=Moment(past=True), help="Accepted before this time.")
@click.option("--key", help="Only tasks with this key.")
@click.option("--metadata", type=Pair(), multiple=True, help="Only tasks with name=value in their metadata.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@click.option("--cursor", help="Go on where an earlier list ended.")
@json_option
@api_option
def list_tasks(
    status: str | None,
    task_type: str | None,
    after: str | None,
    before: str | None,
    key: str | None,
    metadata: Sequence[tuple[str, str]],
    limit: int,
    cursor: str | None,
    as_json: bool,
    api: Api,
) -> None:
    """List tasks, newest first."""
    query = {"status": status, "taskType": task_type, "createdAfter": after, "createdBefore": before, "key": key}
    query |= {f"metadata.{name}": value for name, value in metadata}
    items, following = api.list("/tasks", limit, cursor=cursor, **query)
    if as_json:
        print_json({"items": items, "nextCursor": following})
    elif items:
        show_tasks(items)
        tell_more(following)
    else:
        click.echo("no task matches" if following is None else f"none yet; go on with --cursor {following}", err=True)


@tasks.command(cls=ApiCommand)
@click.argument("task_ids", type=Id(), metavar="ID…", nargs=-1, required=True)
@json_option
@api_option
def cancel(task_ids: Sequence[str], as_json: bool, api: Api) -> None:
    """Cancel tasks that no worker has taken yet. One that runs, or has ended, stays as it is (status 1)."""
    done: list[Document] = []
    refused: list[str] = []
    for task_id in task_ids:
        try:
            done.append(api.call("DELETE", f"/tasks/{task_id}").document)
        except ApiError as error:
            if error.status == UNREACHABLE:
                raise
            refused.append(f"{task_id}: {error}")
    if as_json:
        print_json(done)
    else:
        for task in done:
            click.echo(f"{task['taskId']} {task['status']}")
    if refused:
        leave("\n".join(refused), FAILED)


@tasks.command(cls=ApiCommand)
@click.argument("task_id", type=Id(), metavar="ID")
@click.argument("outcome", type=click.Choice(("succeeded", "resend", "dead")))
@click.option("--reason", help="Why; it is kept in the task's timeline.")
@json_option
@api_option
def resolve(task_id: str, outcome: str, reason: str | None, as_json: bool, api: Api) -> None:
    """Decide on an uncertain task.

    Its side effect happened (succeeded), shall be tried again (resend), or is given up (dead).
    """
    body = {"outcome": outcome} | ({} if reason is None else {"reason": reason})
    task = api.call("POST", f"/tasks/{task_id}/resolve", body).document
    if as_json:
        print_json(task)
    else:
        click.echo(f"{task['taskId']} {task['status']}")
