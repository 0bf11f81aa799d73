"""Checks of the servers and files that settings name. Each raises ValueError with a sentence.

No sentence quotes an address: it may contain a password, or part of one if a character is not escaped.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qs, urlsplit

DSN_FORM: Final = "postgresql://user:password@host:port/database"
REDIS_FORM: Final = "redis://[:password@]host:port/db"
SERVERS_FORM: Final = "host:port[,host:port…]"

_ESCAPES: Final = {"#": "%23", "?": "%3F", "/": "%2F", "@": "%40"}
_TOO_LATE: Final = "a password's special characters must be percent-encoded"

_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_DSN_OPTIONS: Final = frozenset({
    "host", "port", "dbname", "database", "user", "password", "passfile", "service", "sslmode", "sslcert", "sslkey",
    "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation", "ssl_min_protocol_version", "ssl_max_protocol_version",
    "target_session_attrs", "krbsrvname", "gsslib",
})  # fmt: skip
"""Options that asyncpg reads itself. It sends any other to the server, as a server parameter."""
_DSN_FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
_NOT_OURS: Final[Mapping[str, str]] = {
    "connect_timeout": "set TASKFLUX_POSTGRES__CONNECT_TIMEOUT instead",
    "pool_size": "set TASKFLUX_POSTGRES__POOL_SIZE instead",
    "pgbouncer": "set TASKFLUX_POSTGRES__POOLER=true instead",
    "ssl": "write sslmode=require, or sslmode=verify-full with sslrootcert",
    **dict.fromkeys(
        (
            "channel_binding", "gssencmode", "keepalives", "keepalives_count", "keepalives_idle",
            "keepalives_interval", "load_balance_hosts", "replication", "require_auth", "requirepeer", "sslcompression",
            "sslsni", "tcp_user_timeout",
        ),
        "it is known to libpq, but not to asyncpg: leave it out",
    ),
}  # fmt: skip


def check_dsn(text: str) -> str:
    """`text`, if asyncpg can read it as the address of a PostgreSQL server.

    Raises:
        ValueError: saying what is wrong and how to fix it.
    """
    scheme = text.partition("://")[0]
    if "+" in scheme and scheme.partition("+")[0] in ("postgresql", "postgres"):
        raise ValueError("must begin with postgresql://, without a driver name such as +asyncpg")
    parts = _split(text, ("postgresql", "postgres"), DSN_FORM)
    try:
        options = {name: values[-1] for name, values in parse_qs(parts.query, strict_parsing=bool(parts.query)).items()}
    except ValueError:
        raise ValueError("the options after the ? must be name=value, separated by &") from None
    for name in options.keys() - _DSN_OPTIONS:
        if name in _NOT_OURS:
            raise ValueError(f"has the option {name}: {_NOT_OURS[name]}")
        if meant := get_close_matches(name, _DSN_OPTIONS, n=1, cutoff=0.8):
            raise ValueError(f"has the unknown option {name}: did you mean {meant[0]}?")
    if (mode := options.get("sslmode")) is not None and mode not in _SSL_MODES:
        raise ValueError(f"sslmode must be one of {', '.join(_SSL_MODES)}")
    for name in _DSN_FILES:
        if name in options:
            _check_readable(options[name], f"its {name} ")
    if "sslrootcert" in options:
        check_authority(options["sslrootcert"], "its sslrootcert ")
    return text


def check_redis(text: str) -> str:
    """`text`, if redis-py can read it as the address of a Redis or Valkey server.

    Raises:
        ValueError: saying what is wrong and how to fix it.
    """
    scheme = text.partition("://")[0]
    if scheme in ("valkey", "valkeys"):
        raise ValueError(f"must begin with {scheme.replace('valkey', 'redis')}://: Valkey uses Redis's protocol")
    if "sentinel" in scheme or "cluster" in scheme:
        raise ValueError(f"must name one server, as {REDIS_FORM}: Sentinel and Cluster are not supported")
    parts = _split(text, ("redis", "rediss", "unix"), REDIS_FORM)
    if parts.scheme != "unix" and not parts.hostname:
        raise ValueError(f"has no host: use the form {REDIS_FORM}")
    if parts.scheme != "unix" and not re.fullmatch(r"(/\d*)?", parts.path):
        raise ValueError("the path must be the number of a database, such as /0")
    from redis.asyncio import ConnectionPool  # lazily: it is only needed if an address is set

    try:
        pool = ConnectionPool.from_url(text)
    except ValueError:
        raise ValueError("an option after the ? has a value that redis-py cannot read") from None
    for name in parse_qs(parts.query):
        if name not in pool.connection_kwargs:
            continue  # one of the pool's own
        try:
            pool.connection_class(**{name: pool.connection_kwargs[name]})
        except TypeError:
            raise ValueError(f"has the option {name}, which redis-py does not support") from None
    return text


def check_servers(text: str) -> str:
    """`text`, if it is a list of Kafka brokers, or empty (not set).

    Raises:
        ValueError: saying what is wrong and how to fix it.
    """
    if "://" in text:
        raise ValueError(
            f"must be {SERVERS_FORM}, without a scheme: TASKFLUX_KAFKA__SECURITY_PROTOCOL sets the protocol"
        )
    for number, each in enumerate(text.split(",") if text else (), 1):
        which = f"server {number} of the list " if "," in text else ""
        found = re.fullmatch(r"\s*(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\s:\[\]/@]+)(?::(\d{1,5}))?\s*", each)
        if found is None:
            raise ValueError(f"{which}must be host:port, an IPv6 address in brackets: {SERVERS_FORM}")
        if found[1] and not 1 <= int(found[1]) <= 65535:
            raise ValueError(f"{which}has a port that is not between 1 and 65535")
    return text


def check_host(text: str) -> str:
    """`text`, if it is a host name or an IP address, or empty (not set).

    Raises:
        ValueError: saying what is wrong and how to fix it.
    """
    if len(text) > 253 or not re.fullmatch(r"[!-~]*", text) or re.search(r"[/@]", text):
        raise ValueError("must be only a host name or an IP address, without a scheme, a port or a space")
    if re.fullmatch(r"[^:\[\]]*:\d*", text):
        raise ValueError("contains a port: set only the host here, and the port in its own setting")
    return text


def check_url(text: str) -> str:
    """`text`, if it is the base URL of an HTTP service.

    Raises:
        ValueError: saying what is wrong and how to fix it.
    """
    parts = _split(text, ("http", "https"), "http://host:port")
    if not parts.hostname or parts.query:
        raise ValueError("must be a base URL, such as http://host:8080, without a query")
    return text


def check_authority(path: str, what: str = "") -> str:
    """`path`, if it is a file of CA certificates in PEM format; `what` begins the sentence.

    Raises:
        ValueError: saying what is wrong with the file.
    """
    _check_pem(path, what, "holds no certificate in PEM format", lambda: ssl.create_default_context(cafile=path))
    return path


def check_certificate(path: str, key: str, what: str = "") -> None:
    """Check that the files hold a certificate and its key in PEM format; `what` begins the sentence.

    Raises:
        ValueError: saying what is wrong with them.
    """
    _check_readable(key, what)
    context = ssl.create_default_context()
    _check_pem(
        path,
        what,
        f"and {key} are not a certificate and its key, in PEM format and without a passphrase",
        lambda: context.load_cert_chain(path, key, password=_no_passphrase),
    )


def ages(*paths: str | None) -> tuple[int, ...]:
    """When each of these files was written, in nanoseconds; 0 for one that is not set, or not there now."""
    return tuple(Path(each).stat().st_mtime_ns if each and Path(each).exists() else 0 for each in paths)


def _no_passphrase() -> str:
    """Without this, OpenSSL would ask for one at the terminal."""
    raise ValueError


def _check_pem(path: str, what: str, wrong: str, load: Callable[[], object]) -> None:
    _check_readable(path, what)
    try:
        load()
    except (ssl.SSLError, ValueError):
        raise ValueError(f"{what}{path} {wrong}") from None


def _check_readable(path: str, what: str) -> None:
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{what}{path} cannot be read: {reason}") from None


def _split(text: str, schemes: tuple[str, ...], form: str) -> SplitResult:
    """The parts of an address, if no unescaped character can have split it in the wrong place."""
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise ValueError(f"holds white space or a line break: {_TOO_LATE}, and nothing may follow the address")
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in schemes:
        raise ValueError(f"must begin with {' or '.join(f'{each}://' for each in schemes)}: use the form {form}")
    try:
        parts = urlsplit(text)
    except ValueError:  # brackets around something that is not an IPv6 address
        raise ValueError(f"cannot be read: use the form {form}; {_TOO_LATE}, such as [ as %5B") from None
    if wrong := _unescaped(rest):
        raise ValueError(f"holds {wrong} in the user or the password: write it as {_ESCAPES[wrong]}")
    if "#" in text:
        raise ValueError(f"holds #, which ends an address: write it as %23; {_TOO_LATE}")
    if not _is_hosts(parts.netloc.rpartition("@")[2]):
        raise ValueError(f"has a port that is not a number between 1 and 65535: use the form {form}; {_TOO_LATE}")
    return parts


def _unescaped(rest: str) -> str:
    """The unescaped character that cuts the user and password of an address short; empty if there is none."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    path = rest[len(authority) :].partition("?")[0]
    if authority.count("@") > 1 or ("@" in authority and "@" in path):
        return "@"
    if "@" in rest and "@" not in authority and ("@" in path or not _is_hosts(authority)):
        return rest[len(authority)]
    return ""


def _is_hosts(text: str) -> bool:
    found = [re.fullmatch(r"(?:\[[^\]]*\]|[^:\[\]]*)(?::(\d{0,5}))?", host) for host in text.split(",")]
    return all(each and (not each[1] or 1 <= int(each[1]) <= 65535) for each in found)
