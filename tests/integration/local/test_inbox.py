"""The local inbox as a process: SMTP and Flow API in, page and JSON out."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from email.message import EmailMessage
from typing import Any

import aiosmtplib
import httpx
import pytest
import pytest_asyncio

from taskflux.local.ports import free_port
from taskflux.local.supervisor import Inbox

SMS = {"template_id": "65f0c0ffee65f0c0ffee65f0", "recipients": [{"mobiles": "919812345678", "name": "Ada"}]}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def inbox(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Inbox]:
    directory = tmp_path_factory.mktemp("inbox")
    async with Inbox(
        smtp_port=free_port(),
        http_port=free_port(),
        file=directory / "inbox.sqlite",
        log=directory / "inbox.log",
        environment=os.environ,
    ) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def http(inbox: Inbox) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=inbox.url, trust_env=False) as client:
        await client.delete("/api/messages")
        yield client


async def send(inbox: Inbox, *messages: EmailMessage) -> None:
    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=inbox.smtp_port, start_tls=False) as smtp:
        for message in messages:
            await smtp.send_message(message)


def mail(reference: str, subject: str = "Hello", html: str = "") -> EmailMessage:
    message = EmailMessage()
    message["From"] = "taskflux@localhost"
    message["To"] = "Ada <ada@example.org>, grace@example.org"
    message["Subject"] = subject
    message["Message-ID"] = f"<{reference}>"
    message.set_content("Good morning.\n")
    if html:
        message.add_alternative(html, subtype="html")
    return message


async def get(http: httpx.AsyncClient, path: str, **params: str) -> Any:
    answer = await http.get(path, params=params)
    assert answer.status_code == 200
    return answer.json()


async def test_a_mail_is_kept_with_its_recipients_and_can_be_asked_for_by_message_id(
    inbox: Inbox, http: httpx.AsyncClient
) -> None:
    await send(inbox, mail("one@x", "Grüße ✓"), mail("two@x"))
    found = await get(http, "/api/messages", id="<one@x>")
    assert found["totals"] == {"email": 2, "sms": 0}
    (line,) = found["messages"]
    assert (line["subject"], line["to"]) == ("Grüße ✓", ["ada@example.org", "grace@example.org"])
    whole = await get(http, f"/api/messages/{line['id']}")
    assert (whole["text"], whole["headers"]["Message-ID"]) == ("Good morning.\r\n", "<one@x>")


async def test_counts_show_messages_that_were_received_more_than_once(inbox: Inbox, http: httpx.AsyncClient) -> None:
    await send(inbox, mail("one@x"), mail("two@x"), mail("one@x"))
    counts = await get(http, "/api/counts")
    assert counts["email"] == {"received": 3, "distinct": 2, "repeated": {"one@x": 2}}
    assert [each["copies"] for each in (await get(http, "/api/messages"))["messages"]] == [2, 1, 2]


async def test_an_sms_is_kept_and_can_be_asked_for_by_crqid(inbox: Inbox, http: httpx.AsyncClient) -> None:
    answer = await http.post("/api/v5/flow/", json=SMS | {"CRQID": "0199-1"}, headers={"authkey": "k"})
    assert answer.json()["type"] == "success"
    (line,) = (await get(http, "/api/messages", id="0199-1"))["messages"]
    assert (line["kind"], line["to"]) == ("sms", ["919812345678"])
    whole = await get(http, f"/api/messages/{line['id']}")
    assert whole["variables"] == {"name": "Ada"}
    assert whole["requestId"] == answer.json()["message"]


async def test_a_refused_sms_is_not_kept(http: httpx.AsyncClient) -> None:
    assert (await http.post("/api/v5/flow/", json=SMS)).status_code == 401
    refused = await http.post("/api/v5/flow/", content=b"{", headers={"authkey": "k"})
    assert (refused.status_code, refused.json()["type"]) == (200, "error")
    assert (await get(http, "/api/counts"))["sms"]["received"] == 0


async def test_what_was_accepted_survives_a_kill(inbox: Inbox, http: httpx.AsyncClient) -> None:
    await send(inbox, *(mail(f"{number}@x") for number in range(20)))
    inbox.kill()
    await inbox.start()
    assert (await get(http, "/api/counts"))["email"]["distinct"] == 20


async def test_many_connections_at_once_lose_nothing(inbox: Inbox, http: httpx.AsyncClient) -> None:
    await asyncio.gather(*(send(inbox, *(mail(f"{sender}.{n}@x") for n in range(20))) for sender in range(10)))
    assert (await get(http, "/api/counts"))["email"] == {"received": 200, "distinct": 200, "repeated": {}}


async def test_an_attachment_of_several_megabytes_comes_out_as_it_went_in(
    inbox: Inbox, http: httpx.AsyncClient
) -> None:
    content = os.urandom(3_000_000)
    message = mail("big@x")
    message.add_attachment(content, maintype="application", subtype="pdf", filename="große.pdf")
    await send(inbox, message)
    (line,) = (await get(http, "/api/messages"))["messages"]
    whole = await get(http, f"/api/messages/{line['id']}")
    assert whole["attachments"] == [{"name": "große.pdf", "type": "application/pdf", "size": 3_000_000}]
    answer = await http.get(f"/api/messages/{line['id']}/attachments/0")
    assert answer.content == content
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert (await http.get(f"/api/messages/{line['id']}/attachments/1")).status_code == 404


async def test_a_mails_html_runs_no_script_and_loads_nothing(inbox: Inbox, http: httpx.AsyncClient) -> None:
    await send(inbox, mail("html@x", html="<script>alert(1)</script><p>Hi</p>"))
    (line,) = (await get(http, "/api/messages"))["messages"]
    answer = await http.get(f"/api/messages/{line['id']}/html")
    assert "<p>Hi</p>" in answer.text
    directives = answer.headers["content-security-policy"].split("; ")
    assert directives == [
        "sandbox allow-popups allow-popups-to-escape-sandbox",
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
    ]


async def test_the_page_loads_nothing_from_other_hosts(http: httpx.AsyncClient) -> None:
    page = await http.get("/")
    assert "<title>Inbox" in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    links = re.findall(r"""(?:src|href)=["']?(https?:|//)[^"' >]*""", page.text)
    assert links == []


async def test_a_website_that_rebinds_its_name_to_us_is_refused(http: httpx.AsyncClient) -> None:
    assert (await http.get("/api/messages", headers={"host": "attacker.example"})).status_code == 400


async def test_older_messages_are_reached_page_by_page(inbox: Inbox, http: httpx.AsyncClient) -> None:
    await send(inbox, *(mail(f"{number}@x") for number in range(5)))
    first = (await get(http, "/api/messages", limit="3"))["messages"]
    rest = (await get(http, "/api/messages", limit="3", before=str(first[-1]["id"])))["messages"]
    assert [each["reference"] for each in first + rest] == ["4@x", "3@x", "2@x", "1@x", "0@x"]
    assert (await http.get("/api/messages?limit=many")).status_code == 400
    assert (await http.get("/api/messages?kind=fax")).status_code == 400
