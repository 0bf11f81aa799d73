"""The `taskflux` command. Subcommands are imported when they are called: `run` has to start fast."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from taskflux.cli.program import FAILED, UNREACHABLE, URL, Program, join_dev, leave, url_option

if TYPE_CHECKING:
    from taskflux.local.environment import Style


_API_COMMANDS = ("send", "tasks", "dead-letters")


def _version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        from taskflux.version import VERSION

        click.echo(f"taskflux {VERSION}")
        context.exit()


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    lazy={
        "send": "taskflux.cli.tasks:send",
        "tasks": "taskflux.cli.tasks:tasks",
        "dead-letters": "taskflux.cli.dead_letters:dead_letters",
        "doctor": "taskflux.cli.doctor:doctor",
        "migrate": "taskflux.cli.setup:migrate",
        "topics": "taskflux.cli.setup:topics",
        "end-leases": "taskflux.cli.setup:end_leases",
        "config": "taskflux.cli.reference:config",
        "handlers": "taskflux.cli.reference:handlers",
        "openapi": "taskflux.cli.reference:openapi",
        "prune": "taskflux.cli.retention:prune",
        "audit": "taskflux.cli.retention:audit",
        "keys": "taskflux.cli.keys:keys",
    },
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@url_option
@click.pass_context
def main(context: click.Context) -> None:
    """Work outside the request: tasks over HTTP, kept in PostgreSQL, passed through Kafka to small handlers."""
    if URL in context.meta and context.invoked_subcommand not in _API_COMMANDS:
        raise click.UsageError(f"--url is for the commands that call the API: {', '.join(_API_COMMANDS)}")


@main.command()
@click.argument("handler")
@click.option("--topic", help="For router: the topic of mixed types that it takes other producers' tasks from.")
@click.option("--reload", is_flag=True, help="Start it again when its sources change: for work on a handler.")
def run(handler: str, topic: str | None, reload: bool) -> None:
    """Run one HANDLER as a process: ingest, relay, process-email, … or one of your own, my_app.handlers:name."""
    join_dev()
    if topic is not None:
        if handler != "router":
            raise click.UsageError("--topic is for router; every other handler's topic follows from its task type")
        os.environ["TASKFLUX_ROUTER__TOPIC"] = topic
    if reload:
        from taskflux.cli.reload import run_reloading

        sys.exit(run_reloading(handler))
    from taskflux.worker.loading import UnknownHandler
    from taskflux.worker.loading import run as run_deployment

    try:
        sys.exit(run_deployment(handler))
    except UnknownHandler as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("modules", nargs=-1, metavar="[MODULE]…")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8080,
    show_default=True,
    help="Port of the API; the next free one if it is taken.",
)
@click.option(
    "--data-dir",
    default=".taskflux",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where its data is. Commands find it under this name; another one by TASKFLUX_DEV=<folder>.",
)
@click.option("--samples/--no-samples", default=True, help="Send one e-mail, one SMS and one simulated task at start.")
@click.option("--observe", is_flag=True, help="With Prometheus and the chart's alerts, and Grafana, where installed.")
@click.option("--detach", is_flag=True, help="Return to the prompt once it serves, and let it run in the background.")
@click.option("--detached", is_flag=True, hidden=True)
@click.option("--stop", is_flag=True, help="Start nothing: stop the one that runs here.")
@click.option(
    "--env",
    "style",
    type=click.Choice(("sh", "fish", "dotenv")),
    is_flag=False,
    flag_value="sh",
    help="Start nothing: print the variables that lead to the one that runs here, for a shell or as a .env file.",
)
def dev(
    modules: tuple[str, ...],
    port: int,
    data_dir: Path,
    samples: bool,
    observe: bool,
    detach: bool,
    detached: bool,
    stop: bool,
    style: Style | None,
) -> None:
    """Run everything on this machine: the servers embedded, every handler a process of its own.

    With MODULE, the handlers in it run beside the built-in ones, and start again when you save a source. One of several
    is module:handler.

    \b
    taskflux dev
    taskflux dev my_app.handlers
    taskflux dev my_app.handlers --detach, then taskflux dev --stop
    eval "$(taskflux dev --env)"          in a shell; --env=fish
    taskflux dev --env=dotenv > .env      for an IDE
    """
    given = click.get_current_context().get_parameter_source("data_dir") is click.core.ParameterSource.COMMANDLINE
    if [style is not None, stop, bool(modules) or detach].count(True) > 1:
        raise click.UsageError("--env and --stop start nothing: give one of them, without modules and --detach")
    if style is not None:
        return _show_variables(style, data_dir if given else None)
    if stop:
        return _stop_dev(data_dir if given else None)
    from taskflux.local import dev as local

    if not detach:
        sys.exit(local.main(port, data_dir, samples, observe, modules, detached=detached))
    words = [*modules, "--port", str(port), "--data-dir", str(data_dir)]
    words += ["--samples" if samples else "--no-samples", *(["--observe"] if observe else [])]
    sys.exit(local.detach(words, data_dir))


_NONE_RUNS = "no taskflux dev runs in this folder or above it: start one with `taskflux dev`"


def _show_variables(style: Style, data_dir: Path | None) -> None:
    from taskflux.local.environment import NotServing, find, look_at, shown

    try:
        found = find(os.environ) if data_dir is None else look_at(data_dir.expanduser().absolute())
    except NotServing as reason:
        leave(str(reason), UNREACHABLE)
    if found is None:
        leave(_NONE_RUNS, UNREACHABLE)
    click.echo(shown(found.variables, style))


def _stop_dev(data_dir: Path | None) -> None:
    from taskflux.local import dev as local
    from taskflux.local.environment import nearest_held
    from taskflux.local.processes import holder_of

    directory = nearest_held() if data_dir is None else data_dir.expanduser().absolute()
    try:
        if directory is None or holder_of(directory) is None:
            leave(_NONE_RUNS if data_dir is None else f"no taskflux dev runs on {directory}", FAILED)
        ended = local.stop(directory)
    except OSError as error:
        leave(f"the taskflux dev in {directory} cannot be stopped: {error.strerror}", FAILED)
    if not ended:
        leave(f"the taskflux dev in {directory} has not ended within {local.STOP_WAIT:.0f} s: see its logs", FAILED)
    click.echo(f"stopped the taskflux dev in {directory}")


@main.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash   eval "$(taskflux completion bash)"            in ~/.bashrc
    zsh    eval "$(taskflux completion zsh)"             in ~/.zshrc
    fish   taskflux completion fish | source             in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        leave(f"{shell} is not known to this version of click", FAILED)
    # source() of bash first runs the shell to learn its version; the text alone needs no shell.
    complete = kind(main, {}, "taskflux", "_TASKFLUX_COMPLETE")
    click.echo(complete.source_template % complete.source_vars())
