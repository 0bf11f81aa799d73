"""From nothing to an SMTP session that can take mail: connection, TLS, EHLO, AUTH."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from aiosmtplib import (
    SMTP,
    SMTPException,
    SMTPResponseException,
    SMTPServerDisconnected,
    SMTPTimeoutError,
)
from aiosmtplib.response import SMTPResponse

from taskflux.providers.smtp_replies import Reply, Stage, judge
from taskflux.providers.smtp_settings import SmtpSettings
from taskflux.tasks.errors import Misconfigured, Unavailable

_NO_SUCH_MECHANISM: Final = (500, 502, 504, 534)


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


async def dial(settings: SmtpSettings, hostname: str, context: ssl.SSLContext | None) -> SMTP:
    """Open a session, ready for MAIL FROM. `hostname` is what EHLO says.

    Raises:
        Unavailable: nobody answers, or the server takes no mail just now.
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
    ready = False
    try:
        with _no_session(settings):
            await client.connect(timeout=settings.connect_timeout)
            await client.ehlo()
            await _authenticate(client, settings)
        ready = True
    finally:
        if not ready:
            client.close()
    return client


async def hang_up(client: SMTP, timeout: float = 2.0) -> None:
    """QUIT, and close. Whatever was accepted stays accepted when the server fails at this."""
    try:
        await client.quit(timeout=timeout)
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
    if settings.username is None or settings.password is None:
        return
    username, password = settings.username, settings.password.get_secret_value()
    mechanisms: dict[str, Callable[..., Awaitable[SMTPResponse]]] = {
        "plain": client.auth_plain,
        "login": client.auth_login,
        "cram-md5": client.auth_crammd5,
    }
    if settings.tls == "none":
        mechanisms = dict(reversed(mechanisms.items()))  # the one that does not show the password
    offered = [mechanism for mechanism in mechanisms if mechanism in client.server_auth_methods]
    if not offered:
        raise Misconfigured(f"username is set, but the SMTP server at {settings.host} offers no AUTH that we know")
    for mechanism in offered:
        reply = await answer(mechanisms[mechanism](username, password), Stage.SESSION)
        if reply.code not in _NO_SUCH_MECHANISM:
            break
    reply.raise_for_server()
    if reply.code != 235:
        raise Unavailable(f"the SMTP server at {settings.host} answered {reply} to AUTH")


@contextmanager
def _no_session(settings: SmtpSettings) -> Iterator[None]:
    where = f"the SMTP server at {settings.host}:{settings.server_port}"
    try:
        yield
    except SMTPResponseException as error:
        judge(error.code, error.message, Stage.SESSION).raise_for_server()
        raise Unavailable(f"{where} answered {error.code} where that has no meaning") from error
    except (SMTPTimeoutError, SMTPServerDisconnected, OSError) as error:
        _raise_for_certificate(error, where)
        raise Unavailable(f"{where} cannot be reached: {error}") from error
    except SMTPException as error:  # the server lacks an extension that the settings ask for
        raise Misconfigured(f"{where}: {error.message}") from error


def _raise_for_certificate(error: BaseException, where: str) -> None:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise Misconfigured(f"the certificate of {where} is not trusted: {cause.verify_message}") from error
        if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
            raise Misconfigured(f"{where} does not speak TLS from the first byte: set tls to starttls") from error
        cause = cause.__cause__
