"""`taskflux dead-letters`: what could not be done. Look, mend, replay, discard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from taskflux.cli.api import Api, ApiCommand, api_option
from taskflux.cli.replay import replay
from taskflux.cli.shown import show_dead_letter, show_dead_letters, show_groups
from taskflux.cli.tables import json_option, print_json
from taskflux.cli.tasks import gathered, tell_more
from taskflux.cli.values import Id, Moment

F = TypeVar("F", bound=Callable[..., Any])


@click.group("dead-letters")
def dead_letters() -> None:
    """What could not be done: look, mend, replay, discard."""


dead_letters.add_command(replay)


def filters(function: F) -> F:
    """The options that say which dead letters; they arrive as keywords (see `query_of`)."""
    for option in (
        click.option("--before", type=Moment(past=True), help="Stored before this time."),
        click.option("--after", type=Moment(past=True), help="Stored after this time, or at most so long ago: 2h."),
        click.option("--origin-topic", help="Only those that came from this Kafka topic."),
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
        "state": given["state"],
    }


@dead_letters.command("list", cls=ApiCommand)
@filters
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@click.option("--cursor", help="Go on where an earlier list ended.")
@json_option
@api_option
def list_dead_letters(limit: int, cursor: str | None, as_json: bool, api: Api, **given: Any) -> None:
    """List dead letters, newest first."""
    items, following = gathered(api.pages("/dead-letters", limit, cursor=cursor, **query_of(given)))
    if as_json:
        print_json({"items": items, "nextCursor": following})
    elif items:
        show_dead_letters(items)
        tell_more(following)
    else:
        click.echo(
            "no dead letter fits" if following is None else f"none yet; go on with --cursor {following}", err=True
        )


@dead_letters.command(cls=ApiCommand)
@filters
@json_option
@api_option
def groups(as_json: bool, api: Api, **given: Any) -> None:
    """Count dead letters by task type and cause: where to begin."""
    document = api.get("/dead-letters/groups", **query_of(given))
    if as_json:
        print_json(document)
    elif document["groups"]:
        show_groups(document["groups"])
    else:
        click.echo("no dead letter fits", err=True)


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
@click.argument("dead_letter_ids", type=Id(), metavar="ID…", nargs=-1, required=True)
@click.option("--reason", required=True, help="Why nothing is to be done about it; it is kept.")
@json_option
@api_option
def discard(dead_letter_ids: Sequence[str], reason: str, as_json: bool, api: Api) -> None:
    """Put dead letters aside: nothing is to be done about them. They stay to be looked at."""
    done = [api.call("POST", f"/dead-letters/{each}/discard", {"reason": reason}).document for each in dead_letter_ids]
    if as_json:
        print_json(done)
    else:
        for letter in done:
            click.echo(f"{letter['deadLetterId']} {letter['state']}")
