"""Connections to PostgreSQL, and the statements that run over them.

The SQL of the store is in `.sql` files, each named after the module that runs it, with named parameters. aiosql (15.0)
turns `:name` into asyncpg's `$1` too and needs no prepared statements, but its statements are attributes made at run
time (`Any` to mypy), ignore arguments that they do not know, and take a connection from the pool by themselves, past
our time limits, metrics and errors. What would be left of it for us is the text between two names: `statements`.

A statement begins with `-- name: …`, keeps its comment, and ends with the first `;` at the end of a line. Python never
concatenates SQL. Four rules hold for all of them:

*   A transition compares and sets (id, state, version); what does not match changes nothing.
*   A batch locks its task rows first, in the order of their ids (a CTE with ORDER BY … FOR NO KEY UPDATE). The lock of
    a task's row guards its rows in `due` and `claims` too, so nothing locks those before it. A statement that touches
    rows in `due` without it never waits for them (SKIP LOCKED): whoever holds such a row deletes it or gives it a newer
    version. What it must know of `claims` it reads once it has the locks (`unclaimed`): docs/protocol.md says why.
*   A batch comes as arrays, sorted by id, with its least and greatest id beside `= ANY`, so that only its partitions
    are looked at; what belongs to an id is found in another array at width_bucket(id, ids).
*   A statement that locks rows never joins tasks on their id, nor bounds it by what it only learns on the way: such a
    plan prunes partitions while it runs, and PostgreSQL 18 before 18.7 then corrupts its memory when a row that it
    waited for has changed (https://github.com/postgres/postgres/commit/1b5dd3a). `= ANY` of an array is an index scan
    whatever the planner knows of the tables' sizes. So is LATERAL (… OFFSET 0), for reads without locks.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import asyncpg
from asyncpg.pgproto.pgproto import UUID as FastUUID
from uuid_utils import uuid7

from taskflux.store.errors import RefusedData, SchemaTooOld, StoreBusy, StoreError, StoreUnavailable
from taskflux.store.settings import PostgresSettings
from taskflux.telemetry import metrics, outages

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID


Row = Any
"""An asyncpg.Record: values by column name."""

RAISED = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""Whatever goes wrong with a statement or its connection; a TimeoutError is an OSError."""

_TOO_OLD = (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.UndefinedFunctionError)
_BUSY = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
)
_UNAVAILABLE = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DiskFullError,
    asyncpg.OutOfMemoryError,
    asyncpg.ReadOnlySQLTransactionError,  # a primary that has become a standby
    asyncpg.ProtocolViolationError,  # a pooler's answer while its server is unreachable
)
_REFUSED = (
    asyncpg.DataError,
    asyncpg.PostgresSyntaxError,  # not from our statements: a type that cannot be cast
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)

_FIX: Final = "check that PostgreSQL runs, that it can be reached from here, and TASKFLUX_POSTGRES__DSN"


def new_id() -> UUID:
    """A UUIDv7 of asyncpg's own class: it is made, written and compared in a fraction of the time of Python's."""
    made: UUID = FastUUID(uuid7().bytes)
    return made


class Database:
    """A small pool of connections to PostgreSQL, opened when first needed.

    One statement is one transaction and one round trip, with a time limit. Errors are raised as `StoreError`s, typed by
    what the caller does next. While PostgreSQL is unavailable, the log and `/readyz` say why.

    With `fixed_plans`, a statement is planned once for a connection. To plan a claim or a settlement takes PostgreSQL
    as long as to run it for one task; a list, whose plan depends on its filter, needs one for each time.

    A plan is kept, in any case after some calls, and it may be from when a narrow table was empty: to read it all was
    best then, and is slow once thousands of rows are in it. So what an index can find is found by it.
    """

    def __init__(
        self, settings: PostgresSettings, *, pool_size: int = 2, name: str = "taskflux", fixed_plans: bool = False
    ) -> None:
        self._settings = settings
        self._fixed_plans = fixed_plans and not settings.pooler  # behind a pooler, no plan is kept
        self._size = settings.pool_size or pool_size
        self._name = name
        self._pool: asyncpg.Pool[Any] | None = None
        self._link = outages.Link("PostgreSQL")

    @property
    def size(self) -> int:
        """The most connections that are open at once."""
        return self._size

    @property
    def used(self) -> int:
        """Connections that run a statement now."""
        return 0 if self._pool is None else self._pool.get_size() - self._pool.get_idle_size()

    async def open(self) -> None:
        """Create the pool; it connects on first use, so PostgreSQL may still be unreachable."""
        settings = self._settings
        self._pool = await asyncpg.create_pool(
            connect=self._connect,
            min_size=0,
            max_size=self._size,
            max_inactive_connection_lifetime=300.0,
            init=self._connected,
            timeout=settings.connect_timeout,
            command_timeout=settings.statement_timeout,
            # Behind a pooler in transaction mode, a prepared statement may reach another server connection. It passes
            # on only a few start-up parameters; we need application_name.
            statement_cache_size=0 if settings.pooler else 256,
            server_settings={"application_name": self._name},
            # The pool's usual reset frees a pooler's server connection after a cancelled statement.
            reset=None if settings.pooler else _nothing_to_reset,
        )
        metrics.STATEMENT_ERRORS.zeros()
        metrics.OPENED.zeros("postgresql")
        metrics.POOL.labels("used").follow(self, lambda database: database.used)
        metrics.POOL.labels("free").follow(self, lambda database: database.size - database.used)

    async def _connect(self, _: object, **options: Any) -> asyncpg.Connection[Any]:
        """A new connection of the pool, by the DSN as it is now: its password may have been renewed."""
        return await asyncpg.connect(self._settings.dsn.get_secret_value(), **options)

    async def close(self) -> None:
        """Close the connections; a statement that still runs after three seconds is cancelled."""
        self._link.ended()
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            await asyncio.wait_for(pool.close(), 3.0)
        except TimeoutError:
            pool.terminate()

    async def fetch(self, statement: Statement, /, **arguments: object) -> Sequence[Row]:
        """Run `statement` and return its rows.

        Raises:
            StoreError: one of its subclasses.
            TypeError: an argument is missing or unknown.
        """
        if arguments.keys() != {*statement.parameters}:
            raise TypeError(f"{statement.name} takes {', '.join(statement.parameters)}, not {', '.join(arguments)}")
        if self._pool is None:
            raise StoreUnavailable("the connection pool is closed")
        cancelled = None
        asked = monotonic()
        try:
            async with self._pool.acquire(timeout=self._settings.connect_timeout) as connection:
                began = monotonic()
                metrics.POOL_WAIT.labels().observe(began - asked)
                try:
                    values = [arguments[name] for name in statement.parameters]
                    rows: Sequence[Row] = await connection.fetch(statement.text, *values)
                except asyncio.CancelledError as error:
                    cancelled = error
                    raise
                metrics.STATEMENT_SECONDS.labels(statement.name).observe(monotonic() - began)
                self._link.works()
                return rows
        except RAISED as error:
            # Releasing a connection that hangs fails as well, which must not hide the cancellation.
            if cancelled is not None:
                raise cancelled from None
            failure = store_error(error)
            kind = type(failure).__name__
            metrics.STATEMENT_ERRORS.labels(kind).inc()
            if isinstance(failure, StoreUnavailable):
                self._link.failed(kind, " ".join(str(failure).split()), _FIX)
            raise failure from error

    async def fetchrow(self, statement: Statement, /, **arguments: object) -> Row | None:
        """The first row of `statement`, if there is one."""
        rows = await self.fetch(statement, **arguments)
        return rows[0] if rows else None

    async def _connected(self, connection: Any) -> None:
        if not self._settings.pooler:  # not at the connection's start: a pooler in session mode would refuse it there
            await connection.execute(_FIXED_PLANS if self._fixed_plans else _INDEXES)
        metrics.OPENED.labels("postgresql").inc()


# Before PostgreSQL 18, a scan that nothing can replace then seems so expensive that it would be compiled each time.
_INDEXES: Final = "SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off"
_FIXED_PLANS: Final = f"{_INDEXES}; SET plan_cache_mode = force_generic_plan"


async def _nothing_to_reset(connection: Any) -> None:
    """What we set on a connection stays, so the pool's usual reset would be a round trip that does harm."""


def shared(**columns: list[Any]) -> dict[str, object]:
    """Arguments for columns: as `version` the value that all rows have, and as `versions` none; else None, and all.

    asyncpg looks closely at every element of an array.
    """
    arguments: dict[str, object] = {}
    for name, values in columns.items():
        same = bool(values) and values.count(values[0]) == len(values)
        arguments |= {name: values[0] if same else None, f"{name}s": [] if same else values}
    return arguments


@contextmanager
def translated() -> Iterator[None]:
    """Turn errors of asyncpg into `StoreError`s."""
    try:
        yield
    except RAISED as error:
        raise store_error(error) from error


def store_error(error: Exception) -> StoreError:
    """`error`, which is one of RAISED, as the `StoreError` that says what the caller does next."""
    if isinstance(error, _TOO_OLD):
        return SchemaTooOld(f"{error}: run `taskflux migrate`")
    if isinstance(error, _BUSY):
        return StoreBusy(str(error))
    if isinstance(error, _UNAVAILABLE):
        return StoreUnavailable(str(error))
    if isinstance(error, _REFUSED):
        # Its own message quotes the value, or the whole row.
        exists = isinstance(error, asyncpg.UniqueViolationError)
        return RefusedData(f"PostgreSQL refuses a value ({type(error).__name__})", exists=exists)
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError | asyncpg.InvalidCatalogNameError):
        return StoreUnavailable(f"PostgreSQL refuses us ({error}): check TASKFLUX_POSTGRES__DSN")
    if isinstance(error, asyncpg.PostgresError):
        return StoreError(f"{type(error).__name__}: {error.args[0] if error.args else ''}")
    if isinstance(error, TimeoutError):
        return StoreUnavailable("PostgreSQL did not answer in time")
    if isinstance(error, ssl.SSLCertVerificationError):
        return StoreUnavailable(
            f"PostgreSQL's certificate is refused ({error.verify_message}): in TASKFLUX_POSTGRES__DSN, sslrootcert"
            " must name the file of its CA, and the host must match the certificate"
        )
    return StoreUnavailable(str(error) or type(error).__name__)


_STATEMENT: Final = re.compile(r"^-- name: (\w+)\n(.*?);$", re.MULTILINE | re.DOTALL)
# Text whose colons do not begin a parameter comes first: comments, strings, quoted names, casts.
_TOKEN: Final = re.compile(r"""--.*|'(?:[^']|'')*'|"[^"]*"|::|(?P<positional>\$\d+)|:(?P<name>[a-z_]\w*)""")


class Statement(NamedTuple):
    """SQL with positional parameters; the value of `parameters[0]` is its `$1`."""

    name: str
    text: str
    parameters: tuple[str, ...]


@cache
def statements(file: str) -> Mapping[str, Statement]:
    """The statements of `file`.sql, by name.

    Raises:
        ValueError: a statement does not end, is there twice, or has a parameter without a name.
    """
    return parse(files("taskflux.store").joinpath(f"{file}.sql").read_text(encoding="utf-8"))


def parse(text: str) -> Mapping[str, Statement]:
    """The statements of a file."""
    found = [_statement(name, body) for name, body in _STATEMENT.findall(text)]
    if len(found) != len(re.findall("^-- name:", text, re.MULTILINE)):
        raise ValueError("a statement has no ; at the end of a line")
    by_name = {statement.name: statement for statement in found}
    if len(by_name) != len(found):
        raise ValueError("two statements have the same name")
    return by_name


def _statement(name: str, body: str) -> Statement:
    places: dict[str, str] = {}

    def place(token: re.Match[str]) -> str:
        if token["positional"]:
            raise ValueError(f"{name} has a parameter without a name: {token[0]}")
        if token["name"]:
            return places.setdefault(token["name"], f"${len(places) + 1}")
        return token[0]

    return Statement(name, _TOKEN.sub(place, body), tuple(places))
