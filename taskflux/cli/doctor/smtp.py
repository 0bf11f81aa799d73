"""The mail server: connection, TLS, AUTH; no mail is sent."""

from __future__ import annotations

from collections.abc import Iterator

from taskflux.cli.doctor.findings import Finding, Subject
from taskflux.providers.smtp import connect
from taskflux.providers.smtp_session import SmtpSettings
from taskflux.tasks.errors import ProviderError
from taskflux.worker.settings import WrongSettings, load_provider

SMTP = Subject("SMTP")


async def examine() -> list[Finding]:
    """Dial, say EHLO, STARTTLS, AUTH and NOOP, where a server is named."""
    try:
        settings = load_provider("smtp", SmtpSettings)
    except WrongSettings:
        return []  # the settings' own part says so
    if not settings.host:
        return [
            SMTP.ok(
                "not used here", "no server is named here (TASKFLUX_SMTP__HOST); process-email needs it where it runs"
            )
        ]
    findings = list(judge(settings))
    try:
        async with connect.connect(settings) as mailer:
            await mailer.check()
    except ProviderError as error:
        do = "check TASKFLUX_SMTP__HOST, PORT, TLS, USERNAME and PASSWORD; mails wait meanwhile, none is lost"
        return [SMTP.problem("server", f"{error.error_class}: {error.reason}", do), *findings]
    how = f"{settings.tls}, {'authenticated' if settings.username else 'without AUTH'}"
    return [SMTP.ok("server", f"{settings.host} takes mail from us ({how})"), *findings]


def judge(settings: SmtpSettings) -> Iterator[Finding]:
    """What is allowed and unwise."""
    if settings.tls == "none" and settings.username:
        do = "set TASKFLUX_SMTP__TLS to starttls or implicit"
        yield SMTP.warning("TLS", "the password is sent in the clear", do)
    if not settings.tls_verify:
        do = "set TASKFLUX_SMTP__TLS_VERIFY=true, and TASKFLUX_SMTP__CA_FILE for a CA of your own"
        yield SMTP.warning("TLS", "any certificate is taken", do)
    if settings.data_timeout < 600:
        yield SMTP.warning(
            "timeouts",
            f"the answer to a mail is waited for {settings.data_timeout:.0f} s; RFC 5321 allows ten minutes",
            "set TASKFLUX_SMTP__DATA_TIMEOUT=600: giving up earlier makes duplicates",
        )
