"""The environment of a `taskflux dev`: what its handlers get, and what commands in or below its folder find of it.

While it serves, `environment.json` in its data directory holds the variables that lead to it. A command looks for that
directory, `.taskflux/`, in its working directory and above, as git does for `.git/`. A lock tells whether the stack
still runs, so that the file of one that was killed leads nobody astray.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from taskflux.local.console import from_os_error
from taskflux.local.ports import LOOPBACK, LOOPBACK_NAME
from taskflux.local.processes import holder_of, write_whole

NAME: Final = ".taskflux"
"""The data directory that commands look for."""
VARIABLE: Final = "TASKFLUX_DEV"
"""Names the data directory of the stack to use; `off`: no stack is looked for."""
API_URL: Final = "TASKFLUX_API__URL"
FILE: Final = "environment.json"
_FORMER: Final = "environment.former.json"

# What a person may have set for a server of theirs, and what would contradict the embedded one.
_NOT_WITH_EMBEDDED: Final = {
    "POSTGRES": ("MIGRATE_DSN", "POOLER"),
    "KAFKA": (
        "SECURITY_PROTOCOL",
        "SASL_MECHANISM",
        "SASL_USERNAME",
        "SASL_PASSWORD",
        "TLS_CA_FILE",
        "TLS_CERT_FILE",
        "TLS_KEY_FILE",
    ),
    "SMTP": ("USERNAME", "PASSWORD", "CA_FILE", "HOSTNAME"),
    "MSG91": (),
    "REDIS": (),
}
_DECIDES: Final = {
    "POSTGRES": "DSN",
    "KAFKA": "BOOTSTRAP_SERVERS",
    "REDIS": "URL",
    "SMTP": "HOST",
    "MSG91": "AUTH_KEY",
}
SENDER: Final = "TaskFlux <taskflux@localhost>"
TEMPLATE_ID: Final = "65f0c0ffee65f0c0ffee65f0"


@dataclass(frozen=True, slots=True)
class Embedded:
    """Where the embedded servers are; None: that server is the person's own, named in their environment."""

    postgres: str | None = None
    """DSN"""
    kafka: str | None = None
    """host:port"""
    redis: str | None = None
    """URL"""
    smtp_port: int | None = None
    msg91: str | None = None
    """base URL"""


def own_servers(environment: Mapping[str, str]) -> frozenset[str]:
    """The sections (POSTGRES, KAFKA, REDIS, SMTP, MSG91) whose server the environment names."""
    return frozenset(section for section, field in _DECIDES.items() if _given(environment, section, field))


def for_handlers(environment: Mapping[str, str], embedded: Embedded, origin: Path, drain: float) -> dict[str, str]:
    """The environment of every handler: the person's own, with the embedded servers in it.

    `origin` marks the leases of these workers as ours to end; `drain` is what they may take to end, in seconds.
    """
    # The terminal counts outcomes by their log lines.
    usual = {"TASKFLUX_WORKER__DRAIN_SECONDS": f"{drain:g}", "TASKFLUX_LOG__OUTCOMES": "100000"}
    # No website shall have its name lead to what listens here (DNS rebinding).
    usual["TASKFLUX_HTTP__ALLOWED_HOSTS"] = LOOPBACK_NAME
    # It listens on this machine alone, and its first task shall not wait for a key.
    usual["TASKFLUX_AUTH__MODE"] = "off"
    forced = {
        "TASKFLUX_WORKER__ORIGIN": str(origin),
        "TASKFLUX_HTTP__HOST": LOOPBACK,
        "TASKFLUX_LOG__FORMAT": "json",  # what is echoed on the terminal is read from there
    }
    dropped = {"TASKFLUX_HTTP__MANAGEMENT_PORT"}  # of one process, and here they are many
    if embedded.postgres is not None:
        forced["TASKFLUX_POSTGRES__DSN"] = embedded.postgres
        dropped |= _unfit("POSTGRES")
    if embedded.kafka is not None:
        forced["TASKFLUX_KAFKA__BOOTSTRAP_SERVERS"] = embedded.kafka
        forced |= {
            "TASKFLUX_KAFKA__TANSU": "true",
            "TASKFLUX_KAFKA__IDEMPOTENT": "false",
            "TASKFLUX_KAFKA__REPLICATION_FACTOR": "1",
        }
        # The embedded broker answers an empty fetch late, and a join after half of the session timeout.
        usual |= {
            "TASKFLUX_KAFKA__PARTITIONS": "2",
            "TASKFLUX_KAFKA__FETCH_MAX_WAIT_MS": "50",
            "TASKFLUX_KAFKA__SESSION_TIMEOUT": "2",
        }
        dropped |= _unfit("KAFKA")
    if embedded.redis is not None:
        forced["TASKFLUX_REDIS__URL"] = embedded.redis
    if embedded.smtp_port is not None:
        forced |= {"TASKFLUX_SMTP__HOST": LOOPBACK, "TASKFLUX_SMTP__PORT": str(embedded.smtp_port)}
        forced["TASKFLUX_SMTP__TLS"] = "none"
        usual["TASKFLUX_SMTP__SENDER"] = SENDER
        dropped |= _unfit("SMTP")
    if embedded.msg91 is not None:
        forced |= {"TASKFLUX_MSG91__BASE_URL": embedded.msg91, "TASKFLUX_MSG91__AUTH_KEY": "local"}
        usual["TASKFLUX_MSG91__TEMPLATE_ID"] = TEMPLATE_ID
    replaced = dropped | forced.keys()
    kept = {name: value for name, value in environment.items() if name.upper() not in replaced}
    return {**usual, **kept, **forced}


def _given(environment: Mapping[str, str], section: str, field: str) -> str:
    """The value of a setting in the environment; empty: none is there."""
    upper = {name.upper(): value for name, value in environment.items()}
    if value := upper.get(f"TASKFLUX_{section}__{field}"):
        return value
    try:  # a whole section may stand in one variable, as JSON
        whole = json.loads(upper.get(f"TASKFLUX_{section}") or "{}")
    except ValueError:
        return ""
    return str(whole.get(field.lower()) or "") if isinstance(whole, dict) else ""


def _unfit(section: str) -> set[str]:
    return {f"TASKFLUX_{section}__{field}" for field in _NOT_WITH_EMBEDDED[section]}


def for_commands(handlers: Mapping[str, str], own: Mapping[str, str], url: str) -> dict[str, str]:
    """What leads a command, or a handler in another terminal, to the stack whose handlers have this environment.

    `own` is the person's own environment, and `url` the API's address.
    """
    ours = {"TASKFLUX_WORKER__ORIGIN", "TASKFLUX_LOG__FORMAT", "TASKFLUX_HTTP__PORT", API_URL, VARIABLE}
    ours |= {"TASKFLUX_WORKER__DRAIN_SECONDS", "TASKFLUX_LOG__OUTCOMES"} - {name.upper() for name in own}
    kept = {name: value for name, value in handlers.items() if name.upper().startswith("TASKFLUX_")}
    kept = {name: value for name, value in kept.items() if name.upper() not in ours}
    # Port 0 is any free one: its probes and metrics are in nobody's way.
    return {API_URL: url, **dict(sorted(kept.items())), "TASKFLUX_HTTP__PORT": "0"}


def publish(data_dir: Path, variables: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Let commands find a stack that serves; `own` is the person's own environment.

    Raises:
        Trouble: the file cannot be written.
    """
    ours = sorted(name for name, value in variables.items() if own.get(name) != value)
    try:
        write_whole(data_dir / FILE, json.dumps({"variables": variables, "ours": ours}, indent=1) + "\n")
    except OSError as error:
        raise from_os_error(error, f"writing {data_dir / FILE}") from error


def withdraw(data_dir: Path) -> None:
    """Let commands find it no more."""
    with suppress(OSError):
        (data_dir / FILE).replace(data_dir / _FORMER)


def without_former(environment: Mapping[str, str], data_dir: Path) -> dict[str, str]:
    """The environment without what the run before left in a shell by `taskflux dev --env`.

    It would look as if the person had named servers of their own.
    """
    try:
        former = json.loads((data_dir / _FORMER).read_text())
        left = {name: former["variables"][name] for name in former["ours"]}
    except (OSError, ValueError, KeyError, TypeError):
        left = {}
    return {name: value for name, value in environment.items() if left.get(name) != value}


@dataclass(frozen=True, slots=True)
class Found:
    """The data directory of a `taskflux dev` that serves, and the variables that lead to it."""

    directory: Path
    variables: Mapping[str, str]


class NotServing(Exception):
    """There is a data directory, and no stack that serves; the text says why, for a person."""


def find(environment: Mapping[str, str]) -> Found | None:
    """The stack that `TASKFLUX_DEV` names, else the nearest one that serves, from the working directory upwards.

    Raises:
        NotServing: none serves, and one that was killed, or that starts, is there.
    """
    named = environment.get(VARIABLE, "")
    if named.lower() == "off":
        return None
    if named:
        directory = Path(named).expanduser().absolute()
        if (found := look_at(directory)) is None:
            raise NotServing(f"no taskflux dev runs on {directory} ({VARIABLE})")
        return found
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was deleted
        return None
    first: NotServing | None = None
    for folder in (here, *here.parents):
        try:
            if (found := look_at(folder / NAME)) is not None:
                return found
        except NotServing as reason:
            first = first or reason
    if first is not None:
        raise first
    return None


def nearest_held() -> Path | None:
    """The nearest data directory that a `taskflux dev` holds, whether it serves yet or not."""
    here = Path.cwd()
    for directory in (folder / NAME for folder in (here, *here.parents)):
        with suppress(OSError):
            if directory.stat().st_uid in _trusted() and holder_of(directory) is not None:
                return directory
    return None


def look_at(directory: Path) -> Found | None:
    """The stack of this data directory, if it serves; None: there is none, or it was stopped.

    Raises:
        NotServing: it was killed, or starts, or belongs to another user, who could lead our tasks anywhere.
    """
    try:
        owner = directory.stat().st_uid
        if owner not in _trusted():
            raise NotServing(f"{directory} belongs to another user: it is not used")
        runs = holder_of(directory) is not None
        variables = json.loads((directory / FILE).read_text())["variables"]
    except FileNotFoundError:
        if directory.is_dir() and holder_of(directory) is not None:
            raise NotServing(f"the taskflux dev in {directory} is still starting: it is not used yet") from None
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotServing(f"{directory / FILE} cannot be read ({error}): it is not used") from None
    if not runs:
        raise NotServing(f"the taskflux dev in {directory} has ended without cleaning up: it is not used")
    return Found(directory, {str(name): str(value) for name, value in variables.items()})


def _trusted() -> set[int]:
    """The users whose stacks we use: ourselves, and who became root by sudo."""
    sudo = os.environ.get("SUDO_UID", "")
    return {os.geteuid()} | ({int(sudo)} if os.geteuid() == 0 and sudo.isdigit() else set())


def missing_in(environment: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """Those of a stack's variables that a command takes: what the environment says itself wins.

    An environment that names another PostgreSQL or Kafka is another deployment's, and takes nothing. Of a section
    whose server it names, it takes nothing either.
    """
    for section in ("POSTGRES", "KAFKA"):
        field = _DECIDES[section]
        if _given(environment, section, field) not in ("", _given(variables, section, field)):
            return {}
    named = {f"TASKFLUX_{section}__" for section in own_servers(environment)}
    given = {name.upper() for name, value in environment.items() if value}
    return {
        name: value
        for name, value in variables.items()
        if name != API_URL and name.upper() not in given and not name.upper().startswith(tuple(named))
    }


Style = Literal["sh", "fish", "dotenv"]


def shown(variables: Mapping[str, str], style: Style) -> str:
    """The variables as lines for a POSIX shell, for fish, or for a .env file."""
    match style:
        case "sh":
            lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        case "fish":
            lines = [f"set -gx {name} {_single_quoted(value)}" for name, value in variables.items()]
        case "dotenv":
            lines = [f"{name}={_for_dotenv(value)}" for name, value in variables.items()]
    return "\n".join(lines)


def _single_quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _for_dotenv(value: str) -> str:
    """As it is where every reader takes it so; else quoted."""
    if re.fullmatch(r"[\w@%+=:,./?-]*", value):
        return value
    if "'" not in value and "\n" not in value:
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False)
