"""The `taskflux` command. Subcommands are imported when they are called: `run` has to start fast."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from taskflux.cli.program import Program
from taskflux.cli.values import Duration


def _version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from taskflux.version import VERSION

        click.echo(f"taskflux {VERSION}")
        context.exit()


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    lazy={
        "send": "taskflux.cli.send:send",
        "tasks": "taskflux.cli.tasks:tasks",
        "dead-letters": "taskflux.cli.dead_letters:dead_letters",
        "doctor": "taskflux.cli.doctor:doctor",
        "completion": "taskflux.cli.reference:completion",
        "openapi": "taskflux.cli.reference:openapi",
        "prune": "taskflux.cli.retention:prune",
        "audit": "taskflux.cli.retention:audit",
    },
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def main() -> None:
    """Work outside the request: tasks over HTTP, kept in PostgreSQL, handed through Kafka to small handlers."""


@main.command()
@click.argument("handler")
@click.option("--topic", help="For router: the topic of mixed types that it takes other producers' tasks from.")
@click.option("--reload", is_flag=True, help="Start it again when its sources change: for work on a handler.")
def run(handler: str, topic: str | None, reload: bool) -> None:
    """Run one HANDLER as a process: ingest, relay, process-email, … or one of your own, my_app.handlers:name."""
    if topic is not None:
        if handler != "router":
            raise click.UsageError("--topic is for router; every other handler's topic follows from its task type")
        os.environ["TASKFLUX_ROUTER__TOPIC"] = topic
    if reload:
        from taskflux.cli.reload import run_reloading

        sys.exit(run_reloading(handler))
    from taskflux.cli.loading import UnknownHandler, load
    from taskflux.worker.process import run as run_process
    from taskflux.worker.worker import service_of

    try:
        target = load(handler)
    except UnknownHandler as error:
        raise click.ClickException(str(error)) from error
    sys.exit(run_process(service_of(target)))


_wait_option = click.option(
    "--wait", type=Duration(), default=0.0, help="Try again for this long while a server is away: 90s, 2m."
)


@main.command()
@_wait_option
def migrate(wait: float) -> None:
    """Bring the database to this version's schema. Safe to run from several places at once.

    A schema of a newer release is left as it is: releases are rolled back over it.
    """
    from taskflux.cli.setup import migrate_database

    migrate_database(wait)


@main.command()
@click.argument("handlers", nargs=-1)
@click.option(
    "--prime/--no-prime",
    default=True,
    help="Commit where a group without members and offsets begins, so that its lag is what is there.",
)
@click.option(
    "--without",
    multiple=True,
    metavar="HANDLER",
    help="A built-in handler that runs nowhere: its type is not registered, so that its tasks are refused."
    " May be repeated.",
)
@_wait_option
def topics(handlers: tuple[str, ...], prime: bool, without: tuple[str, ...], wait: float) -> None:
    """Register task types and create their missing topics: of all built-in handlers, or of the HANDLERS named alone.

    \b
    taskflux topics --wait 2m
    taskflux topics --without process-sms
    taskflux topics my_app.handlers:resize_image
    """
    from taskflux.cli.topics import prepare_topics

    prepare_topics(handlers, without, prime, wait)


@main.command()
@click.option("--port", default=8080, show_default=True, help="Port of the API; the next free one if it is taken.")
@click.option("--data-dir", default=".taskflux", show_default=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--samples/--no-samples", default=True, help="Send one e-mail, one SMS and one simulated task at start.")
@click.option("--observe", is_flag=True, help="With Prometheus and the chart's alerts, and Grafana, where installed.")
def dev(port: int, data_dir: Path, samples: bool, observe: bool) -> None:
    """Run everything on this machine: the servers embedded, every handler a process of its own."""
    from taskflux.local.dev import main as run_dev

    sys.exit(run_dev(port, data_dir, samples, observe))


@main.command()
@click.option("--reference", is_flag=True, help="Show what can be set, as Markdown, instead of what is.")
def config(reference: bool) -> None:
    """Show the effective settings as JSON, secrets masked."""
    if reference:
        from taskflux.cli.reference import settings_table

        click.echo(settings_table())
        return
    from taskflux.cli.setup import show_config

    show_config()


@main.command("end-leases", hidden=True)
@click.option("--pid", type=int, help="Only the worker with this process id.")
def end_leases(pid: int | None) -> None:
    """End the leases of the workers under TASKFLUX_WORKER__ORIGIN: for the supervisor that saw them die."""
    from taskflux.cli.setup import end_former_leases

    end_former_leases(pid)
