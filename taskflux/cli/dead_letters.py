"""`taskflux dead-letters`: what could not be done. Look, replay (changed if need be, or many by a filter), discard.

A bulk replay is a job of the server: it goes on when this command ends. The command only starts it and looks on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from time import monotonic, sleep
from typing import Any, BinaryIO, Final, TypeVar

import click

from taskflux.cli.api import Api, ApiCommand, ApiError, Document, api_option
from taskflux.cli.program import FAILED, INTERRUPTED, STILL_OPEN, UNREACHABLE, Group, leave, url_option
from taskflux.cli.shown import (
    counted,
    json_option,
    print_json,
    show_dead_letter,
    show_dead_letters,
    show_groups,
    show_jobs,
    tell_more,
)
from taskflux.cli.values import Duration, Id, Moment, payload_of
from taskflux.tasks.states import ENDED

F = TypeVar("F", bound=Callable[..., Any])


@click.group("dead-letters", cls=Group)
@url_option
def dead_letters() -> None:
    """What could not be done: look, fix, replay, discard."""


def filters(function: F) -> F:
    """The options that say which dead letters; they arrive as keywords (see `query_of`)."""
    for option in (
        click.option("--before", type=Moment(past=True), help="Stored before this time."),
        click.option("--after", type=Moment(past=True), help="Stored after this time, or at most so long ago: 2h."),
        click.option("--origin-topic", help="Only those that came from this Kafka topic."),
        click.option("--cause", help="Only those with this cause, as `groups` shows it."),
        click.option("--error-class", help="Only this class of error: Permanent, InvalidPayload, WorkerLost, …"),
        click.option("--type", "task_type", help="Only this task type."),
        click.option(
            "--state",
            type=click.Choice(("open", "replayed", "discarded", "all")),
            default="open",
            show_default=True,
            help="What has been done about them.",
        ),
    ):
        function = option(function)
    return function


def query_of(given: dict[str, Any]) -> dict[str, Any]:
    """The filter options as the API names them."""
    return {
        "taskType": given["task_type"],
        "errorClass": given["error_class"],
        "createdAfter": given["after"],
        "createdBefore": given["before"],
        "originTopic": given["origin_topic"],
        "cause": given["cause"],
        "state": given.get("state"),
    }


@dead_letters.command("list", cls=ApiCommand)
@filters
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@click.option("--cursor", help="Go on where an earlier list ended.")
@json_option
@api_option
def list_dead_letters(limit: int, cursor: str | None, as_json: bool, api: Api, **given: Any) -> None:
    """List dead letters, newest first."""
    items, following = api.list("/dead-letters", limit, cursor=cursor, **query_of(given))
    if as_json:
        print_json({"items": items, "nextCursor": following})
    elif items:
        show_dead_letters(items)
        tell_more(following)
    else:
        click.echo(
            "no dead letter matches" if following is None else f"none yet; go on with --cursor {following}", err=True
        )


@dead_letters.command(cls=ApiCommand)
@filters
@json_option
@api_option
def groups(as_json: bool, api: Api, **given: Any) -> None:
    """Count dead letters by task type and cause: where to begin.

    A cause is an error class with its message, without what varies. TREND is the last 24 hours, this one last.

    \b
    taskflux dead-letters groups
    taskflux dead-letters replay --cause 1-4f0c2a9be371 --dry-run
    """
    document = api.get("/dead-letters/groups", **query_of(given))
    if as_json:
        print_json(document)
    elif document["groups"]:
        show_groups(document)
    else:
        click.echo("no dead letter matches", err=True)


@dead_letters.command(cls=ApiCommand)
@click.argument("dead_letter_id", type=Id(), metavar="ID")
@json_option
@api_option
def show(dead_letter_id: str, as_json: bool, api: Api) -> None:
    """Show one dead letter with everything about it: payload, record, timeline, replays."""
    letter = api.get(f"/dead-letters/{dead_letter_id}")
    if as_json:
        print_json(letter)
    else:
        show_dead_letter(letter)


@dead_letters.command(cls=ApiCommand)
@click.argument("dead_letter_ids", type=Id(), metavar="[ID…]", nargs=-1)
@click.option("--reason", required=True, help="Why nothing is to be done about it; it is kept.")
@click.option("--type", "task_type", help="All of this task type.")
@click.option("--error-class", help="All of this class of error.")
@click.option("--cause", help="All with this cause, as `groups` shows it.")
@click.option("--after", type=Moment(past=True), help="All stored after this time, or at most so long ago: 2h.")
@click.option("--before", type=Moment(past=True), help="All stored before this time.")
@click.option("--origin-topic", help="All that came from this Kafka topic.")
@click.option("--dry-run", is_flag=True, help="Only say how many would be discarded.")
@click.option("--actor", help="Who asks for it; shown with the job.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before a bulk discard; required without a terminal.")
@json_option
@api_option
def discard(dead_letter_ids: Sequence[str], reason: str, as_json: bool, api: Api, **given: Any) -> None:
    """Put dead letters aside: nothing is to be done about them. They stay to be looked at.

    By their IDs, or all that fit a filter, as a job of the server.
    """
    by_filter = {name: value for name, value in query_of(given).items() if value is not None}
    if bool(by_filter) == bool(dead_letter_ids):
        raise click.UsageError("say which: IDs, or a filter (--type, --error-class, --cause, --after, --before, …)")
    if by_filter:
        job = _start(api, "discard", by_filter, {"reason": reason}, given, as_json)
        if job is not None:
            _look_on(api, job, 0.0, as_json)
        return
    done = [api.call("POST", f"/dead-letters/{each}/discard", {"reason": reason}).document for each in dead_letter_ids]
    if as_json:
        print_json(done)
    else:
        for letter in done:
            click.echo(f"{letter['deadLetterId']} {letter['state']}")


LOOK_EVERY = 0.5
"""Seconds between two looks at a bulk replay."""

ENDS: Final = ENDED | {"pruned"}
"""Final outcomes of a replayed task."""

PATIENCE = 60
"""Looks in a row that may fail before the progress bar gives up; the job on the server goes on."""


@dead_letters.command(cls=ApiCommand)
@click.argument("dead_letter_id", type=Id(), metavar="[ID]", required=False)
@click.option("--payload", help="Replay ID with this payload instead: JSON, or - for stdin.")
@click.option("--file", type=click.File("rb"), help="Replay ID with the payload in this file instead.")
@click.option("--edit", is_flag=True, help="Change the payload of ID in an editor ($EDITOR) first.")
@click.option("--value", help="Replay a poison record with this text as its value.")
@click.option("--type", "task_type", help="All of this task type; with ID: the type of a poison record's payload.")
@click.option("--error-class", help="All of this class of error.")
@click.option("--cause", help="All with this cause, as `groups` shows it.")
@click.option("--after", type=Moment(past=True), help="All stored after this time, or at most so long ago: 2h.")
@click.option("--before", type=Moment(past=True), help="All stored before this time.")
@click.option("--origin-topic", help="All that came from this Kafka topic.")
@click.option("--dry-run", is_flag=True, help="Only say how many would be replayed.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Replays per second, instead of as many as the type's tasks that ended lately (50 if there were none).",
)
@click.option("--canary", type=click.IntRange(0, 1000), help="Replay so many first and wait for them, instead of 10.")
@click.option("--max-failure-rate", type=click.FloatRange(0, 1), help="Stop if more of the last 100 fail than 0.5.")
@click.option("--actor", help="Who asks for it; shown with the job.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before a bulk replay; required without a terminal.")
@click.option("--detach", is_flag=True, help="Start the bulk replay and do not look on.")
@click.option(
    "--timeout",
    type=Duration(),
    default=60.0,
    show_default="60s",
    help="Once all are sent, wait at most this long for the tasks to finish (then exit status 4).",
)
@click.option("--follow", "followed", type=Id(), metavar="REPLAY", help="Look on at a bulk replay that was started.")
@click.option("--stop", "stopped", type=Id(), metavar="REPLAY", help="Stop a bulk replay.")
@json_option
@api_option
def replay(
    dead_letter_id: str | None,
    payload: str | None,
    file: BinaryIO | None,
    edit: bool,
    value: str | None,
    followed: str | None,
    stopped: str | None,
    timeout: float,
    as_json: bool,
    api: Api,
    **given: Any,
) -> None:
    """Send the dead letter ID again, or all that fit a filter.

    The exit status of a bulk replay is 0 if all tasks succeeded, 1 if some died again, 4 if some have not finished.

    \b
    taskflux dead-letters replay 01890a5d-ac96-774b-bcce-b302099a8057
    taskflux dead-letters replay 01890a5d-… --edit
    taskflux dead-letters replay 01890a5d-… --payload '{"to": "ann@example.org", "subject": "Hi", "body": "…"}'
    taskflux dead-letters replay --type email --error-class Permanent --after 2d --dry-run
    taskflux dead-letters replay --type email --error-class Permanent --after 2d --rate 50
    """
    by_filter = {name: value for name, value in query_of(given).items() if value is not None}
    changed = payload is not None or file is not None or value is not None or edit
    chosen = [name for name, there in (("--follow", followed), ("--stop", stopped), ("ID", dead_letter_id)) if there]
    if len(chosen) > 1 or (chosen and chosen[0] != "ID" and (by_filter or changed)):
        raise click.UsageError(f"{' and '.join(chosen)} stands alone: say one thing to do")
    if stopped is not None:
        _show(api.call("DELETE", f"/dead-letters/replays/{stopped}").document, as_json)
    elif followed is not None:
        _look_on(api, api.get(f"/dead-letters/replays/{followed}"), timeout, as_json)
    elif dead_letter_id is not None:
        body = _replacement(payload, file, value, given)
        if edit:
            _edit_and_replay(api, dead_letter_id, body, as_json)
        else:
            _one(api, dead_letter_id, body, as_json)
    elif changed:
        raise click.UsageError("--payload, --file, --edit and --value change one dead letter: name its ID")
    else:
        _many(api, by_filter, given, timeout, as_json)


def on_terminal() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty()


def _replacement(payload: str | None, file: BinaryIO | None, value: str | None, given: dict[str, Any]) -> Document:
    """What is to be sent instead of what the dead letter holds."""
    wrong = [
        f"--{name.replace('_', '-')}"
        for name in ("error_class", "cause", "after", "before", "origin_topic")
        if given[name]
    ]
    wrong += [
        f"--{name.replace('_', '-')}"
        for name in ("dry_run", "rate", "canary", "max_failure_rate", "actor", "detach")
        if given[name] is not None and given[name] is not False
    ]
    if wrong:
        raise click.UsageError(f"{', '.join(wrong)} belong to a bulk replay: leave them out, or leave out the ID")
    body: Document = {}
    if value is not None:
        if payload is not None or file is not None:
            raise click.UsageError("--value is the whole record, --payload the task's payload: give one of the two")
        body["value"] = value
    elif payload is not None or file is not None:
        body["payload"] = payload_of(payload, file, sys.stdin.buffer)
    if given["task_type"] is not None:
        body["taskType"] = given["task_type"]
    return body


def _one(api: Api, dead_letter_id: str, body: Document, as_json: bool) -> None:
    answer = api.call("POST", f"/dead-letters/{dead_letter_id}/replay", body).document
    if as_json:
        print_json(answer)
    elif answer.get("taskId"):
        click.echo(f"{answer['taskId']} {answer['status']}")
    else:
        click.echo(f"{dead_letter_id} {answer['status']}")


def _edit_and_replay(api: Api, dead_letter_id: str, body: Document, as_json: bool) -> None:
    """Replay with a payload that was changed in an editor, which opens again while the server refuses it."""
    if set(body) - {"taskType"}:
        raise click.UsageError("--edit changes the payload that failed: leave out --payload, --file and --value")
    text = json.dumps(api.get(f"/dead-letters/{dead_letter_id}")["payload"], indent=2, ensure_ascii=False) + "\n"
    while True:
        edited = click.edit(text, extension=".json")
        if edited is None:
            leave("the payload was not changed, and nothing was replayed", FAILED)
        text = edited
        try:
            return _one(api, dead_letter_id, {**body, "payload": json.loads(text)}, as_json)
        except ValueError as error:
            told = f"this is not JSON: {error}"
        except ApiError as error:
            if error.status == UNREACHABLE:
                raise
            told = str(error)
        click.echo(told, err=True)
        if not click.confirm("Edit it again?", default=True, err=True):
            leave("nothing was replayed", FAILED)


def _many(api: Api, by_filter: Document, given: dict[str, Any], timeout: float, as_json: bool) -> None:
    if not by_filter:
        raise click.UsageError(
            "say which: an ID, or a filter (--type, --error-class, --cause, --after, --before, --origin-topic);"
            " to replay everything, say so with --after 3650d"
        )
    options = {"rate": given["rate"], "canary": given["canary"], "maxFailureRate": given["max_failure_rate"]}
    options = {name: value for name, value in options.items() if value is not None}
    job = _start(api, "replay", by_filter, options, given, as_json)
    if job is None:
        return
    if given["detach"]:
        _show(job, as_json)
    else:
        _look_on(api, job, timeout, as_json)


def _start(
    api: Api, action: str, by_filter: Document, options: Document, given: dict[str, Any], as_json: bool
) -> Document | None:
    """Start a job, once its size is confirmed; None after a dry run, which was shown."""
    asks = not given["yes"] and not given["dry_run"]
    if asks and not on_terminal():
        raise click.UsageError(
            "there is no terminal to ask for confirmation: pass --yes, or --dry-run to only count them"
        )
    path, done = f"/dead-letters/{action}", _DONE[action]
    dry = api.call("POST", path, {"filter": by_filter, "dryRun": True, **_only(options, "reason")}).document
    matched = dry["matched"]
    if given["dry_run"]:
        if as_json:
            print_json(dry)
            return None
        click.echo(f"{counted(matched, 'dead letter')} would be {done}")
        if dry.get("groups"):
            show_groups(dry)
        return None
    if asks and matched and not click.confirm(f"{action.title()} {counted(matched, 'dead letter')}?", err=True):
        leave(f"nothing was {done}", FAILED)
    actor = {} if given["actor"] is None else {"actor": given["actor"]}
    started: Document = api.call("POST", path, {"filter": by_filter, "dryRun": False, **options, **actor}).document
    return started


_DONE: Final = {"replay": "replayed", "discard": "discarded"}


def _only(options: Document, name: str) -> Document:
    return {name: options[name]} if name in options else {}


@dead_letters.command(cls=ApiCommand)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most so many.")
@click.option("--cursor", help="Go on where an earlier list ended.")
@json_option
@api_option
def jobs(limit: int, cursor: str | None, as_json: bool, api: Api) -> None:
    """List bulk replays and discards, newest first: who started them, and how they went."""
    items, following = api.list("/dead-letters/replays", limit, cursor=cursor)
    if as_json:
        print_json({"items": items, "nextCursor": following})
    elif items:
        show_jobs(items)
        tell_more(following)
    else:
        click.echo("there are no jobs", err=True)


def _look_on(api: Api, job: Document, timeout: float, as_json: bool) -> None:
    """Show the progress of the job on stderr, then for `timeout` seconds that of its tasks, and print the outcome.

    Ctrl-C asks whether to stop the job.
    """
    replay_id = job["replayId"]
    try:
        with click.progressbar(length=max(job["matched"], 1), label="working", file=sys.stderr) as bar:
            while True:
                job = _job(api, replay_id)
                bar.update(job.get("replayed", 0) + job.get("discarded", 0) + job.get("skipped", 0) - bar.pos)
                if job["status"] not in ("canary", "running"):
                    break
                sleep(LOOK_EVERY)
        until = monotonic() + timeout
        with click.progressbar(length=max(job.get("replayed", 0), 1), label="finishing", file=sys.stderr) as bar:
            while True:
                bar.update(job.get("replayed", 0) - _still_open(job) - bar.pos)
                if job["status"] != "finished" or not _still_open(job) or monotonic() >= until:
                    break
                sleep(LOOK_EVERY)
                job = _job(api, replay_id)
    except KeyboardInterrupt:
        click.echo(err=True)
        job = _interrupted(api, replay_id)
    _finish(job, as_json)


def _job(api: Api, replay_id: str) -> Document:
    failures = 0
    while True:
        try:
            return api.get(f"/dead-letters/replays/{replay_id}")
        except ApiError as error:
            failures += 1
            if error.status != UNREACHABLE or failures > PATIENCE:
                raise ApiError(f"{error}\n{_goes_on(replay_id)}", error.status) from error
        sleep(LOOK_EVERY)


def _still_open(job: Document) -> int:
    """How many of the job's tasks have not finished."""
    return sum(number for name, number in (job.get("outcomes") or {}).items() if name not in ENDS)


def _interrupted(api: Api, replay_id: str) -> Document:
    if on_terminal():
        try:
            stop = click.confirm("Stop the replay on the server too?", default=False, err=True)
        except (click.Abort, KeyboardInterrupt):
            click.echo(err=True)
            stop = False
        if stop:
            return api.call("DELETE", f"/dead-letters/replays/{replay_id}").document
    return leave(_goes_on(replay_id), INTERRUPTED)


def _goes_on(replay_id: str) -> str:
    return (
        f"the replay goes on at the server. Look on: taskflux dead-letters replay --follow {replay_id}"
        f"  Stop it: taskflux dead-letters replay --stop {replay_id}"
    )


def _finish(job: Document, as_json: bool) -> None:
    _show(job, as_json)
    outcomes = job.get("outcomes") or {}
    if job["status"] != "finished":
        because = job.get("stoppedBecause")
        leave(
            f"the {job['action']} was {job['status']} before it finished" + (f": {because}" if because else ""), FAILED
        )
    if dead := outcomes.get("dead", 0):
        leave(f"{counted(dead, 'task')} died again: taskflux dead-letters groups shows why", FAILED)
    if uncertain := outcomes.get("uncertain", 0):
        leave(f"{counted(uncertain, 'task')} may have been done or not: taskflux tasks list --status uncertain", FAILED)
    if still := _still_open(job):
        follow = f"taskflux dead-letters replay --follow {job['replayId']}"
        leave(f"{counted(still, 'task')} not finished yet; follow with: {follow}", STILL_OPEN)


def _show(job: Document, as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    outcomes = ", ".join(f"{number:,} {name}" for name, number in (job.get("outcomes") or {}).items() if number)
    done = _DONE[job["action"]]
    told = f"{job['replayId']} {job['status']}: {job.get(done, 0):,} of {job['matched']:,} {done}"
    skipped, new_causes = job.get("skipped") or 0, job.get("newCauses") or []
    told += (f", {skipped:,} skipped" if skipped else "") + (f"; so far {outcomes}" if outcomes else "")
    click.echo(told + (f", {counted(len(new_causes), 'new cause')}" if new_causes else ""))
    for new in new_causes:
        click.echo(f"  {new['cause']}  {counted(new['count'], 'task')}")
