"""`taskflux tasks`: look at tasks, cancel one, decide on one whose outcome nobody knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from taskflux.cli.api import Api, ApiCommand, ApiError, Document, api_option
from taskflux.cli.program import UNREACHABLE, leave
from taskflux.cli.shown import json_option, print_json, show_task, show_tasks
from taskflux.cli.values import Id, Moment, Pair

STATES = ("scheduled", "queued", "running", "succeeded", "dead", "uncertain", "cancelled")


@click.group()
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


@tasks.command("list", cls=ApiCommand)
@click.option("--status", type=click.Choice(STATES))
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
    items, following = gathered(api.pages("/tasks", limit, cursor=cursor, **query))
    if as_json:
        print_json({"items": items, "nextCursor": following})
    elif items:
        show_tasks(items)
        tell_more(following)
    else:
        click.echo("no task fits" if following is None else f"none yet; go on with --cursor {following}", err=True)


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
        leave("\n".join(refused), 1)


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


def gathered(pages: Iterator[tuple[list[Document], str | None]]) -> tuple[list[Document], str | None]:
    """All items of the pages, and the cursor that goes on behind them."""
    items: list[Document] = []
    last = None
    for page, cursor in pages:
        items += page
        last = cursor
    return items, last


def tell_more(cursor: str | None) -> None:
    """Say how a list that has not ended goes on."""
    if cursor is not None:
        click.secho(f"there may be more: --cursor {cursor}, or a higher --limit", dim=True, err=True)
