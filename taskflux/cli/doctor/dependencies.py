"""Servers besides PostgreSQL and Kafka: Redis, the mail server, MSG91, the notification service. Nothing is sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

import httpx

from taskflux.cli.doctor.findings import Finding, Subject
from taskflux.providers import notify, smtp
from taskflux.providers.answers import UNPACKED, Answer, ask
from taskflux.providers.msg91 import Msg91Settings
from taskflux.providers.provider import NotifySettings
from taskflux.providers.smtp_session import SmtpSettings
from taskflux.store.settings import RedisSettings
from taskflux.tasks.errors import ProviderError
from taskflux.worker.settings import ScalerSettings, WrongSettings, load_provider

REDIS = Subject("Redis")
SMTP = Subject("SMTP")
MSG91 = Subject("MSG91")
NOTIFY = Subject("notify")
SCALER = Subject("push scaler")

NOTIFY_PATIENCE = 30.0
"""Seconds that the notification service may take to try its mail server."""


async def examine_redis(settings: RedisSettings) -> list[Finding]:
    """Connect, PING twice, take the second time. Redis is optional, so never worse than a warning."""
    if settings.url is None:
        return [REDIS.ok("not used", "there is none (TASKFLUX_REDIS__URL is unset); everything works without")]
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    do = "check TASKFLUX_REDIS__URL; without Redis, rate limits count for each process alone and nothing is cached"
    client = Redis.from_url(settings.url.get_secret_value(), socket_timeout=5.0, socket_connect_timeout=5.0)
    try:
        await client.ping()
        before = time.perf_counter()
        await client.ping()
        latency = time.perf_counter() - before
    except (RedisError, OSError) as error:
        return [REDIS.warning("reachable", f"it is not: {error}", do)]
    finally:
        await client.aclose()
    return [REDIS.ok("reachable", "it answers"), judge_latency(latency, settings)]


def judge_latency(latency: float, settings: RedisSettings) -> Finding:
    """Against the time that anybody waits for it."""
    told = f"{latency * 1000:.1f} ms; it is given up after {settings.timeout * 1000:.0f} ms"
    if latency > settings.timeout / 2:
        do = "move Redis nearer, or raise TASKFLUX_REDIS__TIMEOUT: what is given up does without"
        return REDIS.warning("latency", told, do)
    return REDIS.ok("latency", told)


async def examine_smtp() -> list[Finding]:
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
    findings = list(judge_smtp(settings))
    try:
        async with smtp.connect.connect(settings) as mailer:
            await mailer.check()
            findings += judge_auth(settings, mailer.auth_methods)
    except ProviderError as error:
        do = "check TASKFLUX_SMTP__HOST, PORT, TLS, USERNAME and PASSWORD; mails wait meanwhile, none is lost"
        return [SMTP.problem("server", f"{error.error_class}: {error.reason}", do), *findings]
    how = f"{settings.tls}, {'authenticated' if settings.username else 'without AUTH'}"
    return [SMTP.ok("server", f"{settings.host} takes mail from us ({how})"), *findings]


def judge_auth(settings: SmtpSettings, offered: Sequence[str]) -> Iterator[Finding]:
    """Warn of a server that offers AUTH if no username is set: many then accept mail for their own domains only."""
    if offered and not settings.username:
        told = f"the server offers AUTH ({', '.join(sorted(set(offered))).upper()}), and no username is set"
        do = "set TASKFLUX_SMTP__USERNAME and PASSWORD, unless the server relays for this host's IP address"
        yield SMTP.warning("AUTH", told, do)


def judge_smtp(settings: SmtpSettings) -> Iterator[Finding]:
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


async def examine_msg91() -> list[Finding]:
    """Ask for the front page of the API's address: any answer will do. No key is sent.

    The API has no call that asks nothing of it, so that the credentials are proved by the first message only.
    """
    try:
        settings = load_provider("msg91", Msg91Settings)
    except WrongSettings:
        return []  # the settings' own part says so
    if not settings.auth_key.get_secret_value():
        return [
            MSG91.ok("not used here", "no key is set (TASKFLUX_MSG91__AUTH_KEY); process-sms needs it where it runs")
        ]
    findings = list(judge_msg91(settings))
    try:
        seconds = settings.connect_timeout + 5
        async with httpx.AsyncClient(timeout=seconds) as http:
            answer = await ask(http, http.build_request("HEAD", settings.base_url), "msg91", seconds=seconds, most=0)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        do = "check TASKFLUX_MSG91__BASE_URL and the way out to the internet; messages wait meanwhile"
        told = f"{settings.base_url} cannot be reached: {error or type(error).__name__}"
        return [MSG91.problem("reachable", told, do), *findings]
    return [MSG91.ok("reachable", f"{settings.base_url} answers ({answer.status})"), *findings]


def judge_msg91(settings: Msg91Settings) -> Iterator[Finding]:
    """What can be said without sending a message."""
    told = "it is set; the API has no call to prove it, so the first message does (a wrong one opens the circuit)"
    yield MSG91.ok("auth key", told)
    if not settings.template_id:
        do = "set TASKFLUX_MSG91__TEMPLATE_ID, unless every task names its own templateId"
        yield MSG91.warning("template", "none is set: a task that names none stops all SMS as misconfigured", do)
    else:
        yield MSG91.ok("template", "it is set; whether it is approved only MSG91's own pages tell")
    if settings.base_url.startswith("http://") and "127.0.0.1" not in settings.base_url:
        yield MSG91.warning("TLS", "the auth key is sent in the clear", "use https:// in TASKFLUX_MSG91__BASE_URL")


async def examine_notify(settings: NotifySettings) -> list[Finding]:
    """Ask whether it lives, and have it check its mail server; nothing is sent."""
    if settings.url is None:
        return [
            NOTIFY.ok("not used here", "handlers speak to the providers themselves (TASKFLUX_NOTIFY__URL is unset)")
        ]
    try:
        async with httpx.AsyncClient(base_url=settings.url, timeout=NOTIFY_PATIENCE, headers=UNPACKED) as http:
            alive, checked = [
                await ask(http, http.build_request(*asked), "notify", seconds=NOTIFY_PATIENCE, most=notify.MOST_BYTES)
                for asked in (("GET", "readyz"), ("POST", "notifications/email/check"))
            ]
    except (httpx.HTTPError, TimeoutError) as error:
        told = f"{settings.url} cannot be reached: {error or type(error).__name__}"
        do = "run `taskflux run notify` and name its address in TASKFLUX_NOTIFY__URL; tasks wait meanwhile"
        return [NOTIFY.problem("reachable", told, do)]
    return [judge_ready(settings, alive.status), judge_mail(checked)]


def judge_ready(settings: NotifySettings, status: int) -> Finding:
    """What /readyz said."""
    if status == httpx.codes.OK:
        return NOTIFY.ok("reachable", f"{settings.url} is ready")
    do = "see that TASKFLUX_NOTIFY__URL leads to `taskflux run notify`, and read its log"
    return NOTIFY.problem("reachable", f"{settings.url}/readyz answers {status}", do)


def judge_mail(checked: Answer) -> Finding:
    """What the check of its mail server said."""
    if checked.status == httpx.codes.NO_CONTENT:
        return NOTIFY.ok("mail server", "it serves the notification service")
    told = notify.document(checked.body).get("detail", "")
    do = "fix the TASKFLUX_SMTP__… settings of notify, or leave it if only SMS go through it"
    return NOTIFY.warning("mail server", f"answered {checked.status}: {told}", do)


async def examine_scaler(settings: ScalerSettings) -> list[Finding]:
    """Whether a relay on this machine listens for KEDA, where it should."""
    if settings.port is None:
        return [SCALER.ok("not served", "KEDA polls Kafka and PostgreSQL (TASKFLUX_SCALER__PORT is unset)")]
    try:
        async with asyncio.timeout(5.0):
            _, writer = await asyncio.open_connection("127.0.0.1", settings.port)
    except OSError as error:  # a TimeoutError too
        return [
            SCALER.warning(
                "listens",
                f"nothing does at port {settings.port} of this machine: {error.strerror or 'no answer'}",
                "run the doctor in a relay's pod; if it is one, see its log, and TASKFLUX_SCALER__PORT",
            )
        ]
    writer.close()
    how = "with TLS" if settings.tls_cert_file else "without TLS: see that only KEDA reaches it"
    return [SCALER.ok("listens", f"a relay listens at port {settings.port}, {how}")]
