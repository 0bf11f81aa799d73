"""MSG91: its API has no call that asks nothing of it, so the credentials are proved by the first message only."""

from __future__ import annotations

from collections.abc import Iterator

import httpx

from taskflux.cli.doctor.findings import Finding, Subject
from taskflux.providers.msg91 import Msg91Settings
from taskflux.worker.settings import WrongSettings, load_provider

MSG91 = Subject("MSG91")


async def examine() -> list[Finding]:
    """Ask for the front page of the API's address: any answer will do. No key is sent."""
    try:
        settings = load_provider("msg91", Msg91Settings)
    except WrongSettings:
        return []  # the settings' own part says so
    if not settings.auth_key.get_secret_value():
        return [
            MSG91.ok("not used here", "no key is set (TASKFLUX_MSG91__AUTH_KEY); process-sms needs it where it runs")
        ]
    findings = list(judge(settings))
    try:
        async with httpx.AsyncClient(timeout=settings.connect_timeout + 5) as http:
            answer = await http.head(settings.base_url)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        do = "check TASKFLUX_MSG91__BASE_URL and the way out to the internet; messages wait meanwhile"
        told = f"{settings.base_url} cannot be reached: {error or type(error).__name__}"
        return [MSG91.problem("reachable", told, do), *findings]
    return [MSG91.ok("reachable", f"{settings.base_url} answers ({answer.status_code})"), *findings]


def judge(settings: Msg91Settings) -> Iterator[Finding]:
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
