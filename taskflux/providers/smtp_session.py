"""Sessions with the SMTP server: its settings, connection, TLS, EHLO and AUTH, and the pool that uses them again."""

from __future__ import annotations

import asyncio
import math
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal

from aiosmtplib import (
    SMTP,
    SMTPException,
    SMTPResponseException,
    SMTPServerDisconnected,
    SMTPTimeoutError,
)
from aiosmtplib.response import SMTPResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from taskflux.endpoints import ages, check_authority, check_host
from taskflux.providers.addresses import Address
from taskflux.providers.provider import Sending
from taskflux.providers.smtp_replies import Reply, Stage, Throttled, judge
from taskflux.tasks.errors import Misconfigured, ProviderError, Unavailable

PORTS: Final = {"starttls": 587, "implicit": 465, "none": 25}


class SmtpSettings(BaseModel):
    """The SMTP server that sends mails."""

    model_config = ConfigDict(extra="forbid")

    host: Annotated[str, AfterValidator(check_host), Field(description="name or address of the server")] = ""
    port: Annotated[
        int | None, Field(ge=1, le=65535, description="unset: 587 for starttls, 465 for implicit, 25 for none")
    ] = None
    username: Annotated[str | None, Field(description="for AUTH; unset: no AUTH")] = None
    password: Annotated[SecretStr | None, Field(description="for AUTH")] = None
    access_token: Annotated[
        SecretStr | None,
        Field(description="access token for AUTH by XOAUTH2; put one that expires in a file"),
    ] = None
    access_token_file: Annotated[
        str | None, Field(description="file with the access token, read at each login, so that it can be renewed")
    ] = None
    tls: Annotated[
        Literal["starttls", "implicit", "none"],
        Field(
            description="starttls: upgraded before credentials and mails are sent; implicit: TLS from the first byte;"
            " none: plaintext"
        ),
    ] = "starttls"
    tls_verify: Annotated[bool, Field(description="false accepts any certificate: for tests only")] = True
    ca_file: Annotated[
        Annotated[str, AfterValidator(check_authority)] | None,
        Field(description="PEM file of the server's CA; unset: the system's"),
    ] = None
    sender: Annotated[str, Field(description="sender of the mails: ann@example.org or Ann Lee <ann@example.org>")] = ""
    hostname: Annotated[
        Annotated[str, AfterValidator(check_host)] | None,
        Field(description="our name in EHLO; unset: the host's full name"),
    ] = None
    connections: Annotated[int, Field(ge=1, le=1000, description="maximum number of connections of one process")] = 10
    max_connection_age: Annotated[
        float, Field(gt=0, description="seconds after which a connection is closed instead of reused")
    ] = 240.0
    connect_timeout: Annotated[
        float, Field(gt=0, description="seconds for the connection, its TLS and the greeting")
    ] = 15.0
    command_timeout: Annotated[float, Field(gt=0, description="seconds that the answer to one command may take")] = 60.0
    # RFC 5321, 4.5.3.2.6: a server may take ten minutes over the end of the data, and by then it may have the mail.
    # To give up earlier leaves the outcome unknown, and a retry makes duplicates.
    data_timeout: Annotated[
        float,
        Field(gt=0, description="seconds that the answer to the whole mail may take; a shorter time causes duplicates"),
    ] = 600.0
    max_message_bytes: Annotated[
        int, Field(ge=1024, description="a mail above this size, attachments encoded, is refused before it is sent")
    ] = 36_700_160
    rate: Annotated[
        float | None, Field(gt=0, description="mails per second, all processes together; unset: no limit")
    ] = None

    @field_validator("sender")
    @classmethod
    def _sender_is_an_address(cls, value: str) -> str:
        if value:
            Address.parse(value)
        return value

    @model_validator(mode="after")
    def _does_not_contradict_itself(self) -> SmtpSettings:
        secrets = [
            name for name in ("password", "access_token", "access_token_file") if getattr(self, name) is not None
        ]
        if len(secrets) > 1:
            raise ValueError(f"{' and '.join(secrets)} are set: set only one of them")
        if self.username and not secrets:
            raise ValueError("username is set, but password is not: set both, or neither for a server without AUTH")
        if secrets and not self.username:
            raise ValueError(
                f"{secrets[0]} is set, but username is not: set both, or neither for a server without AUTH"
            )
        if self.tls == "none" and self.ca_file:
            raise ValueError(
                "ca_file is set, but tls is none: nothing would be verified; set tls to starttls or implicit"
            )
        if not self.tls_verify and self.ca_file:
            raise ValueError(
                "ca_file is set, but tls_verify is false: nothing would be verified; set tls_verify to true"
            )
        if self.host and not self.sender:
            raise ValueError("host is set, but sender is not: set it to the address that mails are from")
        return self

    @property
    def server_port(self) -> int:
        """`port`, or the usual one for `tls`."""
        return self.port or PORTS[self.tls]


LOST: Final = (SMTPServerDisconnected, SMTPTimeoutError, OSError)
"""What a command raises when its session broke, or the server did not answer in time."""

_NO_SUCH_MECHANISM: Final = (500, 502, 504, 534)
_LIKE_A_TOKEN: Final = re.compile("[A-Za-z0-9+/_-]{40,}=*")


def tls_context(settings: SmtpSettings) -> ssl.SSLContext | None:
    """What certificates are trusted; None for plaintext.

    Raises:
        Misconfigured: `ca_file` cannot be read.
    """
    if settings.tls == "none":
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:  # ssl.SSLError, for a file that holds no certificate, is one of them
        raise Misconfigured(f"ca_file {settings.ca_file} cannot be used: {error}") from error
    if not settings.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Trusted:
    """The certificates that are trusted, read again once `ca_file` has been renewed."""

    def __init__(self, settings: SmtpSettings) -> None:
        self._settings = settings
        self._age = ages(settings.ca_file)
        self._context = tls_context(settings)

    def context(self) -> ssl.SSLContext | None:
        """For a new session. Raises Misconfigured."""
        if (age := ages(self._settings.ca_file)) != self._age:
            self._context, self._age = tls_context(self._settings), age
        return self._context


async def dial(settings: SmtpSettings, hostname: str, context: ssl.SSLContext | None) -> SMTP:
    """Open a session, ready for MAIL FROM. `hostname` is what EHLO says.

    Raises:
        Unavailable: the server does not answer, or accepts no mail just now.
        Misconfigured: it refuses us, offers no TLS or AUTH, or its certificate is not trusted.
    """
    client = SMTP(
        hostname=settings.host,
        port=settings.server_port,
        local_hostname=hostname,
        timeout=settings.command_timeout,
        use_tls=settings.tls == "implicit",
        start_tls=settings.tls == "starttls",  # never None: that would fall back to plaintext
        tls_context=context,
    )
    ready = greeted = False
    server = f"the SMTP server at {settings.host}:{settings.server_port}"
    try:
        # Nothing of a task was sent yet: any error here is about the server.
        with Sending("a mail", server, (), unforeseen=Unavailable), _no_session(server):
            await client.connect(timeout=settings.connect_timeout)
            greeted = True
            await client.ehlo()
            await _authenticate(client, settings)
        ready = True
    except Unavailable as error:
        if not greeted and isinstance(error.__cause__, SMTPTimeoutError | SMTPServerDisconnected):
            await _raise_for_smtps(settings, server)
        raise
    finally:
        if not ready:
            client.close()
    return client


async def hang_up(client: SMTP) -> None:
    """QUIT, and close. What was accepted stays accepted even if this fails."""
    try:
        await client.quit(timeout=2.0)
    except (SMTPException, OSError):
        pass
    finally:
        client.close()


async def answer(call: Awaitable[SMTPResponse], stage: Stage) -> Reply:
    """The reply to a command, whether aiosmtplib returns it or raises it."""
    try:
        code, text = await call
    except SMTPResponseException as error:
        code, text = error.code, error.message
    return judge(code, text, stage)


async def _authenticate(client: SMTP, settings: SmtpSettings) -> None:
    """AUTH once, by the best mechanism that both sides know.

    `SMTP.login` goes on to the next mechanism after a refusal, so that one wrong password counts as several.
    """
    if settings.username is None:
        return
    mechanisms: dict[str, Callable[..., Awaitable[SMTPResponse]]]
    if settings.password is not None:
        secret = settings.password.get_secret_value()
        mechanisms = {"plain": client.auth_plain, "login": client.auth_login, "cram-md5": client.auth_crammd5}
    else:
        secret = await asyncio.to_thread(access_token, settings)
        mechanisms = {"xoauth2": client.auth_xoauth2}
    if settings.tls == "none":
        mechanisms = dict(reversed(mechanisms.items()))  # the one that does not show the password
    offered = [mechanism for mechanism in mechanisms if mechanism in client.server_auth_methods]
    if not offered:
        raise Misconfigured(_no_common_mechanism(settings, client.server_auth_methods))
    for mechanism in offered:
        reply = await answer(mechanisms[mechanism](settings.username, secret), Stage.SESSION)
        if reply.code not in _NO_SUCH_MECHANISM:
            break
    # A server may repeat the command that it refuses.
    reply = replace(reply, text=_LIKE_A_TOKEN.sub("…", reply.text))
    reply.raise_for_server()
    if reply.code != 235:
        raise Unavailable(f"the SMTP server at {settings.host} answered {reply} to AUTH")


def access_token(settings: SmtpSettings) -> str:
    """The current token for XOAUTH2.

    Raises:
        Misconfigured: its file cannot be read.
    """
    if settings.access_token_file is None:
        return settings.access_token.get_secret_value() if settings.access_token is not None else ""
    try:
        return Path(settings.access_token_file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        told = error.strerror if isinstance(error, OSError) else "it is not text"
        raise Misconfigured(f"access_token_file {settings.access_token_file} cannot be read: {told}") from error


def _no_common_mechanism(settings: SmtpSettings, offered: Sequence[str]) -> str:
    server = f"the SMTP server at {settings.host}"
    if not offered:
        return f"username is set, but {server} offers no AUTH"
    names = ", ".join(sorted(set(offered))).upper()
    if settings.password is None and {"plain", "login", "cram-md5"} & set(offered):
        return (
            f"{server} offers no XOAUTH2, but AUTH by {names}: set TASKFLUX_SMTP__PASSWORD instead of an access token"
        )
    if settings.password is not None and "xoauth2" in offered:
        return (
            f"{server} offers only AUTH by {names}: set TASKFLUX_SMTP__ACCESS_TOKEN_FILE (or ACCESS_TOKEN)"
            " instead of the password"
        )
    return f"username is set, but {server} offers only unsupported AUTH mechanisms: {names}"


@contextmanager
def _no_session(where: str) -> Iterator[None]:
    try:
        yield
    except SMTPResponseException as error:
        judge(error.code, error.message, Stage.SESSION).raise_for_server()
        raise Unavailable(f"{where} answered {error.code} which is not valid there") from error
    except LOST as error:
        _raise_for_certificate(error, where)
        raise Unavailable(f"{where} cannot be reached: {error}") from error
    except SMTPException as error:  # the server lacks an extension that the settings ask for
        raise Misconfigured(f"{where}: {error.message}") from error


_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL")
"""What OpenSSL calls a greeting in plaintext; the second since 3.2."""


def _raise_for_certificate(error: BaseException, where: str) -> None:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise Misconfigured(f"the certificate of {where} is not trusted: {cause.verify_message}") from error
        if isinstance(cause, ssl.SSLError) and cause.reason in _NOT_TLS:
            raise Misconfigured(f"{where} does not speak TLS from the first byte: set tls to starttls") from error
        cause = cause.__cause__


async def _raise_for_smtps(settings: SmtpSettings, server: str) -> None:
    """A server that expects TLS from the first byte waits for ours while we wait for its greeting."""
    if settings.tls == "implicit":
        return
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(min(settings.connect_timeout, 5.0)):
            _, writer = await asyncio.open_connection(settings.host, settings.server_port, ssl=anybody)
    except (OSError, TimeoutError):
        return
    writer.close()
    raise Misconfigured(f"{server} speaks TLS from the first byte: set tls to implicit (TASKFLUX_SMTP__TLS=implicit)")


Dial = Callable[[], Awaitable[SMTP]]


WELL: Final = 30.0
"""Seconds after a successful login during which further logins run at the same time."""


class Logins:
    """Allows one login at a time until one succeeds; again `WELL` seconds later, and after one was refused.

    A connection that waited while a login failed gets that error and does not try: ten wrong passwords in a second
    look like an attack, and get this host's address blocked.
    """

    def __init__(self) -> None:
        self._well_until = -math.inf
        self._failed: ProviderError | None = None
        self.failures = 0
        """Failed logins so far. A caller notes it when it begins to wait for a connection."""
        self._turn = asyncio.Lock()

    async def run(self, dial: Dial, since: int | None = None) -> SMTP:
        """A connection from `dial`, for a caller that began to wait after `since` failures; None: now.

        Raises:
            ProviderError: it cannot be opened.
        """
        if not self._well:
            before = self.failures if since is None else since
            async with self._turn:
                if not self._well:
                    if self._failed is not None and self.failures > before:
                        raise type(self._failed)(self._failed.reason) from self._failed
                    return await self._try(dial)
        return await self._try(dial)

    @property
    def _well(self) -> bool:
        return time.monotonic() < self._well_until

    async def _try(self, dial: Dial) -> SMTP:
        try:
            client = await dial()
        except ProviderError as error:
            self._failed, self.failures = error, self.failures + 1
            if isinstance(error, Misconfigured):
                self._well_until = -math.inf
            raise
        self._well_until = time.monotonic() + WELL
        return client


CALM: Final = 20
"""Mails that must go well before one more connection is tried."""


class Slots:
    """How many connections may be busy at once: halved when the server throttles us, raised again by one at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.wanted = most
        self._existing = most
        self.busy = 0
        self._calm = 0
        self._free = asyncio.Semaphore(most)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot; the outcome of the mail that used it decides how many there are."""
        await self._free.acquire()
        self.busy += 1
        try:
            yield
        except Throttled:
            self.wanted = max(1, self.wanted // 2)
            self._calm = 0
            raise
        else:
            self._calm += 1
            if self._calm >= CALM and self.wanted < self._most:
                self._calm = 0
                self.wanted += 1
                if self._existing < self.wanted:
                    self._existing += 1
                    self._free.release()
        finally:
            self.busy -= 1
            if self._existing > self.wanted:
                self._existing -= 1  # one too many: it is not given out again
            else:
                self._free.release()


@dataclass(slots=True)
class Connection:
    """One session, for one user at a time. `reused`: it was idle before, and may have died meanwhile."""

    client: SMTP
    born: float
    reused: bool = False


class Pool:
    """At most `most` connections, each used again until it is `max_age` seconds old."""

    def __init__(self, dial: Dial, *, most: int, max_age: float) -> None:
        self.slots = Slots(most)
        self._dial = dial
        self._max_age = max_age
        self._idle: list[Connection] = []

    @property
    def used(self) -> int:
        """Connections in use, including those that are being opened."""
        return self.slots.busy

    @property
    def free(self) -> int:
        """Connections that are available without waiting: idle, or not opened yet."""
        return max(0, self.slots.wanted - self.slots.busy)

    @asynccontextmanager
    async def connection(self, dial: Dial | None = None) -> AsyncIterator[Connection]:
        """A connection, opened by `dial` if it is new and `dial` is given.

        Left with an error it is closed, because the state of its dialogue is unknown.

        Raises:
            ProviderError: no session could be opened.
        """
        async with self.slots.slot():
            connection = await self._idle_connection() or Connection(await (dial or self._dial)(), time.monotonic())
            healthy = False
            try:
                yield connection
                healthy = True
            finally:
                if healthy and connection.client.is_connected:
                    connection.reused = True
                    self._idle.append(connection)
                else:
                    connection.client.close()

    async def renew(self, connection: Connection) -> None:
        """Replace the session of a connection that had died while it was idle.

        Raises:
            ProviderError: no session could be opened.
        """
        connection.client.close()
        connection.client, connection.born, connection.reused = await self._dial(), time.monotonic(), False

    async def close(self) -> None:
        """Hang up what is idle."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(hang_up(connection.client) for connection in idle))

    async def _idle_connection(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()  # the one used last: the others may expire
            if not connection.client.is_connected:
                continue
            if time.monotonic() - connection.born < self._max_age:
                return connection
            await hang_up(connection.client)
        return None
