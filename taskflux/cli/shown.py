"""Tables for people, JSON for scripts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import click

from taskflux.cli.api import Document

F = TypeVar("F", bound=Callable[..., Any])

COLOURS: Final[Mapping[str, str]] = {
    "scheduled": "cyan",
    "queued": "cyan",
    "running": "blue",
    "succeeded": "green",
    "dead": "red",
    "uncertain": "yellow",
    "cancelled": "bright_black",
    "open": "red",
    "replayed": "green",
    "discarded": "bright_black",
    "ok": "green",
    "warning": "yellow",
    "problem": "red",
}
"""Words that stand for a state, by the colour they have on a terminal (click leaves it out everywhere else)."""
_LONGEST_REASON: Final = 60


def json_option(function: F) -> F:
    """`--json`, as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(function)


def print_json(document: object) -> None:
    """A document on stdout; text outside ASCII stays readable, but not what a terminal would obey."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=True))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows under their headings, each column as wide as its widest cell."""
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[place]) for row in cells)]) for place, name in enumerate(columns)]
    click.secho(_line([name.upper() for name in columns], widths), bold=True)
    for row in cells:
        click.echo(_line(row, widths, painted))


def print_fields(pairs: Mapping[str, object]) -> None:
    """Name and value line by line; what is None or empty is left out."""
    shown = {name: cell(value) for name, value in pairs.items() if value not in (None, "", [], {})}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        click.echo(f"{click.style(name.ljust(width), bold=True)}  {painted(value)}")


def painted(text: str) -> str:
    """A word that stands for a state in its colour; any other text as it is."""
    colour = COLOURS.get(text.strip())
    return click.style(text, fg=colour) if colour else text


def cell(value: object) -> str:
    """A value on one line, without anything that a terminal would obey."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else " " if char.isspace() else "�" for char in text)


def shortened(text: str, longest: int) -> str:
    """At most `longest` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def moment(text: str | None, *, milliseconds: bool = False) -> str:
    """An RFC 3339 time as a table shows it: to the second, or to the millisecond."""
    if not text:
        return ""
    fraction = text[20:].rstrip("Z").ljust(3, "0")[:3]
    return f"{text[:10]} {text[11:19]}" + (f".{fraction}Z" if milliseconds else "Z")


def counted(number: int, noun: str) -> str:
    """`1 task`, `2,000 tasks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _line(row: Sequence[str], widths: Sequence[int], paint: Callable[[str], str] = str) -> str:
    padded = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
    padded[-1] = row[-1]
    return "  ".join(map(paint, padded)).rstrip()


def show_task(task: Document) -> None:
    """Everything about one task."""
    error = task.get("error") or {}
    print_fields(
        {
            "task": task["taskId"],
            "type": task["taskType"],
            "status": task["status"],
            "attempts": f"{task['attempts']} of {task['maxAttempts']}",
            "losses": task.get("losses") or None,
            "created": moment(task["createdAt"]),
            "updated": moment(task["updatedAt"]),
            "due": moment(task.get("dueAt")),
            "waits for": task.get("waitsFor"),
            "expires": moment(task.get("expiresAt")),
            "key": task.get("key"),
            "metadata": task.get("metadata"),
            "trace": task.get("traceId"),
            "replays": task.get("replays"),
            "delivery": task.get("delivery"),
            "error": f"{error.get('class')}: {error.get('reason')}" if error else None,
            "result": task.get("result"),
        }
    )
    if "payload" in task:
        show_payload(task["payload"])
    show_timeline(task.get("timeline") or [])


def show_payload(payload: object) -> None:
    """A payload, indented."""
    click.secho("\npayload", bold=True)
    for line in json.dumps(payload, indent=2, ensure_ascii=False).splitlines():
        click.echo(f"  {cell(line)}")


def show_timeline(entries: Sequence[Document]) -> None:
    """The events in their order, with milliseconds if some share a second."""
    if not entries:
        return
    click.echo()
    columns = ("at", "event", "status", "attempt", "times", "note")
    seconds = Counter(moment(entry["at"]) for entry in entries)
    rows = [_timeline_row(entry, milliseconds=seconds[moment(entry["at"])] > 1) for entry in entries]
    print_table(columns, rows)


def _timeline_row(entry: Document, *, milliseconds: bool) -> list[Any]:
    times = entry.get("times") or 1
    status = entry.get("status") or entry.get("state")
    note = shortened(cell(entry.get("note")), 80)
    at = moment(entry["at"], milliseconds=milliseconds)
    return [at, entry["event"], status, entry.get("attempt"), times if times > 1 else "", note]


def show_tasks(tasks: Sequence[Document]) -> None:
    """A line for each task."""
    columns = ("task", "type", "status", "attempts", "created", "due", "waits for", "error")
    print_table(columns, [_task_row(task) for task in tasks])


def _task_row(task: Document) -> list[Any]:
    error = task.get("error") or {}
    told = f"{error.get('class')}: {error.get('reason')}" if error else ""
    attempts = f"{task['attempts']}/{task['maxAttempts']}"
    created, due = moment(task["createdAt"]), moment(task.get("dueAt"))
    waits_for, error_shown = task.get("waitsFor", ""), shortened(told, _LONGEST_REASON)
    return [task["taskId"], task["taskType"], task["status"], attempts, created, due, waits_for, error_shown]


def explain_end(task: Document) -> str:
    """What an outcome that is no success means, and what can be done about it."""
    task_id, error = task["taskId"], task.get("error") or {}
    why = f" ({error.get('class')}: {error.get('reason')})" if error else ""
    match task["status"]:
        case "dead":
            return f"the task is dead{why}. Fix what it says, then replay its dead letter: taskflux dead-letters list"
        case "cancelled":
            return "the task was cancelled"
        case "uncertain":
            return (
                f"nobody knows whether its side effect happened{why}. A delivery report may tell; else look, and"
                f" decide: taskflux tasks resolve {task_id} succeeded|resend|dead"
            )
        case status:
            return f"the task is still {status}; it goes on. Look again: taskflux tasks get {task_id}"


def tell_more(cursor: str | None) -> None:
    """Say how a list that has not ended goes on."""
    if cursor is not None:
        click.secho(f"there may be more: --cursor {cursor}, or a higher --limit", dim=True, err=True)


def show_dead_letters(letters: Sequence[Document]) -> None:
    """A line for each dead letter."""
    columns = ("dead letter", "type", "error", "attempts", "created", "state", "reason")
    rows = [
        [
            letter["deadLetterId"],
            letter.get("taskType") or "–",
            letter["errorClass"],
            letter["attempts"],
            moment(letter["createdAt"]),
            letter["state"],
            shortened(cell(letter["reason"]), _LONGEST_REASON),
        ]
        for letter in letters
    ]
    print_table(columns, rows)


_BARS: Final = " ▁▂▃▄▅▆▇█"


def bars(counts: Sequence[int]) -> str:
    """Counts as a line of bars, the highest for the largest of them."""
    most = max(counts, default=0) or 1
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in counts)


def show_groups(document: Document) -> None:
    """Dead letters by type and cause, and what changed before each cause was first seen."""
    columns = ("type", "error", "cause", "count", "first seen", "last seen", "trend", "message")
    rows = [
        [
            group.get("taskType") or "–",
            group["errorClass"],
            group.get("cause") or "–",
            f"{group['count']:,}",
            moment(group.get("firstSeen")),
            moment(group.get("lastSeen")),
            bars(group["trend"]["counts"]),
            shortened(cell(group.get("message") or ""), 100),
        ]
        for group in document["groups"]
    ]
    print_table(columns, rows)
    others = document["others"]
    if others["groups"]:
        click.echo(f"and {counted(others['count'], 'dead letter')} in {counted(others['groups'], 'smaller group')}")
    for group in document["groups"]:
        if change := _told(group.get("handler")):
            click.secho(f"{group['cause']}  {change}", dim=True)


def _told(change: Document | None) -> str | None:
    """What changed before a cause was first seen, and since; None where nothing did."""
    if change is None:
        return None
    ran, before, latest = change["image"], change["before"], change["latest"]
    told = []
    if before is not None:
        told.append(f"began under {ran['name']} (since {moment(ran['since'])}; before it ran {before['name']})")
    if latest != ran:
        told.append(f"{latest['name']} runs since {moment(latest['since'])}")
    return cell("; ".join(told)) or None


def show_jobs(jobs: Sequence[Document]) -> None:
    """A line for each job on dead letters."""
    columns = ("job", "action", "status", "by", "started", "done", "of", "filter", "note")
    rows = [
        [
            job["replayId"],
            job["action"],
            job["status"],
            job.get("actor") or "–",
            moment(job["createdAt"]),
            f"{job['replayed'] + job['discarded']:,}",
            f"{job['matched']:,}",
            shortened(" ".join(f"{name}={value}" for name, value in job["filter"].items()), 80),
            job.get("stoppedBecause") or job.get("reason") or "",
        ]
        for job in jobs
    ]
    print_table(columns, rows)


def show_dead_letter(letter: Document) -> None:
    """Everything about one dead letter."""
    origin = letter.get("origin") or {}
    discarded = letter.get("discarded")
    print_fields(
        {
            "dead letter": letter["deadLetterId"],
            "state": letter["state"],
            "task": letter.get("taskId"),
            "type": letter.get("taskType"),
            "error": letter["errorClass"],
            "cause": letter.get("cause"),
            "reason": letter["reason"],
            "attempts": letter["attempts"],
            "created": moment(letter["createdAt"]),
            "origin": f"{origin.get('topic')} partition {origin.get('partition')} offset {origin.get('offset')}"
            if origin.get("topic")
            else None,
            "trace": letter.get("traceId"),
            "discarded": f"{moment(discarded['at'])} {discarded['reason']}" if discarded else None,
        }
    )
    if letter.get("payload") is not None:
        show_payload(letter["payload"])
    _show_record(letter.get("record") or {})
    show_timeline(letter.get("timeline") or [])
    if letter.get("replays"):
        click.echo()
        rows = [[moment(r["at"]), r.get("by"), r.get("taskId"), r.get("outcome") or "–"] for r in letter["replays"]]
        print_table(("replayed at", "by", "task", "outcome"), rows)


def _show_record(record: Document) -> None:
    parts = {name: record.get(name) for name in ("key", "value", "headers") if record.get(name)}
    if not parts:
        return
    click.secho("\nrecord", bold=True)
    for name, part in parts.items():
        click.echo(f"  {name}: {shortened(cell(part), 2000)}")
