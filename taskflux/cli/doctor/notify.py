"""The notification service, where handlers deliver through one."""

from __future__ import annotations

import httpx

from taskflux.cli.doctor.findings import Finding, Subject
from taskflux.providers.provider import NotifySettings

NOTIFY = Subject("notify")

PATIENCE = 30.0
"""Seconds that the service may take to try its mail server."""


async def examine(settings: NotifySettings) -> list[Finding]:
    """Ask whether it lives, and have it check its mail server; nothing is sent."""
    if settings.url is None:
        return [
            NOTIFY.ok("not used here", "handlers speak to the providers themselves (TASKFLUX_NOTIFY__URL is unset)")
        ]
    try:
        async with httpx.AsyncClient(base_url=settings.url, timeout=PATIENCE) as http:
            alive = await http.get("readyz")
            checked = await http.post("notifications/email/check")
    except httpx.HTTPError as error:
        told = f"{settings.url} cannot be reached: {error or type(error).__name__}"
        do = "run `taskflux run notify` and name its address in TASKFLUX_NOTIFY__URL; tasks wait meanwhile"
        return [NOTIFY.problem("reachable", told, do)]
    return [judge_ready(settings, alive.status_code), judge_mail(checked)]


def judge_ready(settings: NotifySettings, status: int) -> Finding:
    """What /readyz said."""
    if status == httpx.codes.OK:
        return NOTIFY.ok("reachable", f"{settings.url} is ready")
    do = "see that TASKFLUX_NOTIFY__URL leads to `taskflux run notify`, and read its log"
    return NOTIFY.problem("reachable", f"{settings.url}/readyz answers {status}", do)


def judge_mail(checked: httpx.Response) -> Finding:
    """What the check of its mail server said."""
    if checked.status_code == httpx.codes.NO_CONTENT:
        return NOTIFY.ok("mail server", "it serves the notification service")
    told = checked.json().get("detail", "") if "json" in checked.headers.get("content-type", "") else ""
    do = "mend the TASKFLUX_SMTP__… settings of notify, or leave it if only SMS go through it"
    return NOTIFY.warning("mail server", f"answered {checked.status_code}: {told}", do)
