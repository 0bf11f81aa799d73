"""`taskflux send`: one task, and if wanted its outcome."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import Any, BinaryIO, Final
from uuid import uuid4

import click

from taskflux.cli.api import Answer, Api, ApiCommand, ApiError, Document, api_option, sleep
from taskflux.cli.program import FAILED, OK, STILL_OPEN, UNREACHABLE, leave
from taskflux.cli.shown import explain_end, json_option, print_json, show_task
from taskflux.cli.values import Duration, Moment, Pair, metadata_of, payload_of

ENDED = frozenset({"succeeded", "dead", "cancelled", "uncertain"})
"""States that last: `uncertain` until a delivery report or a person decides."""

SILENCE: Final = 15.0
"""Seconds that the server may be away while an outcome is waited for."""
_FIRST_LOOK, _LAST_LOOK = 0.1, 2.0


@click.command(cls=ApiCommand)
@click.argument("task_type", metavar="TYPE")
@click.argument("payload", required=False)
@click.option("--file", type=click.File("rb"), help="Read the payload from this file.")
@click.option("--delay", type=Duration(), help="Run it this much later: 90, 10m, 1h30m.")
@click.option("--at", "schedule_at", type=Moment(past=False), help="Run it then: 2030-01-31T09:00:00Z.")
@click.option("--expires", "expires_at", type=Moment(past=False), help="Past this time it is dead, not late.")
@click.option("--key", help="Picks the Kafka partition; promises no order.")
@click.option("--idempotency-key", help="Names this request: sent again, it makes no second task.")
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
        "metadata": metadata_of(metadata),
    }
    body = {"taskType": task_type, "payload": payload_of(payload, file, sys.stdin.buffer)}
    body |= {name: value for name, value in optional.items() if value is not None}
    answer = submit(api, body, idempotency_key)
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
    task = wait_for(api, accepted["taskId"], timeout)
    if as_json:
        print_json(task)
    else:
        show_task(task)
    if task["status"] != "succeeded":
        leave(explain_end(task), FAILED if task["status"] in ENDED else STILL_OPEN)
    sys.exit(OK)


def submit(api: Api, body: object, idempotency_key: str | None) -> Answer:
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


def wait_for(api: Api, task_id: str, timeout: float | None) -> Document:
    """The task once it has ended, or as it stands when `timeout` seconds have passed.

    A server that is away for a moment (its pod is replaced) is asked again.

    Raises:
        ApiError: it was refused, or the server was away for too long.
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
