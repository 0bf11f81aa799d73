import asyncio
import base64
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from taskflux.providers.email import Attachment, Email
from taskflux.providers.message import Message
from taskflux.providers.smtp import Mailer, connect
from taskflux.providers.smtp_replies import Throttled
from taskflux.providers.smtp_session import SmtpSettings
from taskflux.tasks.errors import Ambiguous, InvalidPayload, Misconfigured, Permanent, TaskError, Transient, Unavailable
from tests.integration.providers.smtp_server import (
    DROP,
    HANG,
    ONLY_XOAUTH2,
    Postbox,
    TokenPostbox,
    server_that_greets,
    server_that_says,
    smtp_server,
)
from tests.memory import traced_peak

DATE = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
BOUND = 20.0


def mail(*to: str, **fields: Any) -> Email:
    return Email(to=list(to) or ["ann@example.org"], subject="Hello", body="Hi", **fields)


async def sent(mailer: Mailer, email: Email | None = None, **more: Any) -> dict[str, Any]:
    async with asyncio.timeout(BOUND):
        return await mailer.send(email or mail(), message_id="0199", date=DATE, **more)


async def failed(mailer: Mailer, email: Email | None = None, **more: Any) -> TaskError:
    with pytest.raises(TaskError) as failure:
        await sent(mailer, email, **more)
    return failure.value


@asynccontextmanager
async def mailer_at(port: int, **settings: Any) -> AsyncIterator[Mailer]:
    given = {
        "host": "127.0.0.1",
        "port": port,
        "tls": "none",
        "sender": "TaskFlux <tasks@example.org>",
        "hostname": "me.test",
    }
    async with connect.connect(SmtpSettings.model_validate(given | settings)) as mailer:
        yield mailer


@asynccontextmanager
async def plain(postbox: Postbox, *, options: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[Mailer]:
    async with smtp_server(postbox, **(options or {})), mailer_at(postbox.port, **settings) as mailer:
        yield mailer


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_mail_goes_over_tls_with_auth(tls: str, certificate: trustme.LeafCert, ca_file: str) -> None:
    postbox = Postbox(credentials=("ann", "s3cret"))
    async with (
        smtp_server(postbox, tls=tls, certificate=certificate),
        mailer_at(postbox.port, tls=tls, ca_file=ca_file, username="ann", password="s3cret") as mailer,
    ):
        await mailer.check()
        result = await sent(mailer)
    assert result == {
        "messageId": "<0199@example.org>",
        "delivered": {"ann@example.org": "250 2.0.0 Ok"},
        "refused": {},
        "deferred": {},
    }
    [received] = postbox.mails
    assert received.sender == "tasks@example.org"
    assert received.message["Message-ID"] == "<0199@example.org>"
    assert received.message["Date"].datetime == DATE


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_a_certificate_that_nobody_vouches_for_is_misconfigured(tls: str, certificate: trustme.LeafCert) -> None:
    async with smtp_server(Postbox(), tls=tls, certificate=certificate) as postbox:
        async with mailer_at(postbox.port, tls=tls) as mailer:
            assert "is not trusted" in (await refused_check(mailer, Misconfigured)).reason
        async with mailer_at(postbox.port, tls=tls, tls_verify=False) as mailer:
            await mailer.check()


async def refused_check(mailer: Mailer, expected: type[TaskError]) -> TaskError:
    with pytest.raises(expected) as failure:
        async with asyncio.timeout(BOUND):
            await mailer.check()
    return failure.value


async def test_a_server_without_starttls_is_never_spoken_to_in_plaintext(ca_file: str) -> None:
    async with smtp_server(Postbox()) as postbox, mailer_at(postbox.port, tls="starttls", ca_file=ca_file) as mailer:
        assert "STARTTLS" in (await refused_check(mailer, Misconfigured)).reason
    assert postbox.mails == []


async def test_implicit_tls_to_a_plaintext_server_names_the_setting(ca_file: str) -> None:
    async with smtp_server(Postbox()) as postbox, mailer_at(postbox.port, tls="implicit", ca_file=ca_file) as mailer:
        assert "set tls to starttls" in (await refused_check(mailer, Misconfigured)).reason


async def test_a_wrong_password_is_tried_once_and_is_misconfigured(certificate: trustme.LeafCert, ca_file: str) -> None:
    postbox = Postbox(credentials=("ann", "s3cret"))
    async with (
        smtp_server(postbox, tls="starttls", certificate=certificate),
        mailer_at(postbox.port, tls="starttls", ca_file=ca_file, username="ann", password="wrong") as mailer,
    ):
        error = await failed(mailer)
    assert isinstance(error, Misconfigured)
    assert "535" in error.reason
    assert postbox.logins == ["PLAIN"]


async def test_too_many_logins_are_throttling_and_not_a_wrong_password(
    certificate: trustme.LeafCert, ca_file: str
) -> None:
    postbox = Postbox(credentials=("ann", "s3cret"))
    postbox.replies["AUTH"] = ["454 4.7.0 too many login attempts"]
    async with (
        smtp_server(postbox, tls="starttls", certificate=certificate),
        mailer_at(postbox.port, tls="starttls", ca_file=ca_file, username="ann", password="s3cret") as mailer,
    ):
        assert isinstance(await failed(mailer), Throttled)


async def test_a_server_that_takes_only_xoauth2_gets_the_token_as_it_is_at_each_login(
    certificate: trustme.LeafCert, ca_file: str, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("old\n")
    postbox = TokenPostbox(credentials=("ann", "old"))
    secret = {"username": "ann", "access_token_file": str(token)}
    async with (
        smtp_server(postbox, tls="starttls", certificate=certificate, **ONLY_XOAUTH2),
        mailer_at(postbox.port, tls="starttls", ca_file=ca_file, max_connection_age=1e-9, **secret) as mailer,
    ):
        await sent(mailer)
        postbox.credentials = ("ann", "new")
        error = await failed(mailer)
        assert type(error) is Misconfigured
        assert "535" in error.reason
        token.write_text("new\n")
        await mailer.check()
        await sent(mailer)
    assert (len(postbox.mails), set(postbox.logins)) == (2, {"XOAUTH2"})


@pytest.mark.parametrize(
    ("secret", "sentence"),
    [
        ({"access_token": "right"}, None),
        ({"access_token": "wrong"}, "535"),
        ({"password": "right"}, "set TASKFLUX_SMTP__ACCESS_TOKEN_FILE"),
    ],
)
async def test_a_secret_of_the_wrong_kind_is_answered_with_the_setting(
    secret: dict[str, str], sentence: str | None
) -> None:
    postbox = TokenPostbox(credentials=("ann", "right"))
    async with plain(postbox, options=ONLY_XOAUTH2, username="ann", **secret) as mailer:
        if sentence is None:
            await sent(mailer)
        else:
            assert sentence in (await refused_check(mailer, Misconfigured)).reason


async def test_a_server_without_xoauth2_is_answered_with_the_setting() -> None:
    async with plain(Postbox(credentials=("ann", "s")), username="ann", access_token="t") as mailer:
        assert "set TASKFLUX_SMTP__PASSWORD" in (await refused_check(mailer, Misconfigured)).reason


async def test_ten_mails_with_a_wrong_password_are_one_failed_login(
    certificate: trustme.LeafCert, ca_file: str
) -> None:
    postbox = Postbox(credentials=("ann", "s3cret"))
    async with (
        smtp_server(postbox, tls="starttls", certificate=certificate),
        mailer_at(postbox.port, tls="starttls", ca_file=ca_file, username="ann", password="wrong") as mailer,
    ):
        errors = await asyncio.gather(*(failed(mailer) for _ in range(10)))
        assert postbox.logins == ["PLAIN"]
        assert {type(error) for error in errors} == {Misconfigured}
        postbox.credentials = ("ann", "wrong")
        await asyncio.gather(*(sent(mailer) for _ in range(10)))
    assert len(postbox.mails) == 10


DENIALS = [
    "554 5.7.1 <ann@example.org>: Relay access denied",
    "550 relay not permitted",
    "454 4.7.1 Relay access denied",
]


@pytest.mark.parametrize("denial", DENIALS)
async def test_relaying_that_is_denied_for_all_without_auth_is_misconfigured(denial: str) -> None:
    postbox = Postbox()
    postbox.replies["ann@example.org"] = postbox.replies["bob@example.org"] = [denial] * 5
    async with plain(postbox) as mailer:
        error = await failed(mailer, mail("ann@example.org", "bob@example.org"))
        assert type(error) is Misconfigured
        assert "ann@" not in error.reason
        assert error.progress is not None
        assert (error.progress["refused"], error.progress["deferred"]) == ({}, {})
        await refused_check(mailer, Misconfigured)  # a probe finds the same, and the circuit stays open
        postbox.replies.clear()
        await mailer.check()
        await sent(mailer, mail("ann@example.org", "bob@example.org"), progress=error.progress)
    assert [received.recipients for received in postbox.mails] == [["ann@example.org", "bob@example.org"]]


async def test_relaying_that_is_denied_for_one_of_two_is_a_matter_of_that_one() -> None:
    postbox = Postbox()
    postbox.replies["bob@example.org"] = [DENIALS[0]] * 2
    async with plain(postbox) as mailer:
        result = await sent(mailer, mail("ann@example.org", "bob@example.org"))
        assert list(result["refused"]) == ["bob@example.org"]
        progress = {"delivered": {"ann@example.org": "250 Ok"}}
        result = await sent(mailer, mail("ann@example.org", "bob@example.org"), progress=progress)
        assert list(result["refused"]) == ["bob@example.org"]
        await mailer.check()


async def test_relaying_that_is_denied_to_a_user_who_logged_in_is_the_mail_s_matter(
    certificate: trustme.LeafCert, ca_file: str
) -> None:
    postbox = Postbox(credentials=("ann", "s3cret"))
    postbox.replies["ann@example.org"] = [DENIALS[0]]
    async with (
        smtp_server(postbox, tls="starttls", certificate=certificate),
        mailer_at(postbox.port, tls="starttls", ca_file=ca_file, username="ann", password="s3cret") as mailer,
    ):
        assert type(await failed(mailer)) is Permanent


async def test_a_denial_names_the_setting_where_the_server_offers_auth() -> None:
    ehlo, no = b"250-mail.test\r\n250 AUTH PLAIN\r\n", b"554 5.7.1 <ann@example.org>: Relay access denied\r\n"
    async with server_that_says(ehlo=ehlo, rcpt=no) as port, mailer_at(port) as mailer:
        error = await failed(mailer)
    assert type(error) is Misconfigured
    assert "set TASKFLUX_SMTP__USERNAME" in error.reason


@pytest.mark.parametrize("tls", ["starttls", "none"])
async def test_a_port_that_speaks_tls_from_the_first_byte_is_answered_with_the_fix(
    tls: str, certificate: trustme.LeafCert
) -> None:
    async with (
        smtp_server(Postbox(), tls="implicit", certificate=certificate) as postbox,
        mailer_at(postbox.port, tls=tls, connect_timeout=1.0) as mailer,
    ):
        assert "TASKFLUX_SMTP__TLS=implicit" in (await refused_check(mailer, Misconfigured)).reason
        assert type(await failed(mailer)) is Misconfigured


async def test_a_server_that_wants_auth_and_gets_none_is_misconfigured(
    certificate: trustme.LeafCert, ca_file: str
) -> None:
    postbox = Postbox(credentials=("ann", "s3cret"))
    async with (
        smtp_server(postbox, tls="starttls", certificate=certificate),
        mailer_at(postbox.port, tls="starttls", ca_file=ca_file) as mailer,
    ):
        assert isinstance(await failed(mailer), Misconfigured)


async def test_nobody_listening_is_unavailable() -> None:
    async with smtp_server(Postbox()) as postbox:
        port = postbox.port
    async with mailer_at(port) as mailer:
        assert isinstance(await failed(mailer), Unavailable)
        await refused_check(mailer, Unavailable)


@pytest.mark.parametrize(
    ("greeting", "expected"),
    [
        (b"421 4.3.2 shutting down\r\n", Throttled),
        (b"450 not now\r\n", Unavailable),
        (b"554 5.7.1 you are blocked\r\n", Misconfigured),
        (b"HTTP/1.1 400 Bad Request\r\n", Unavailable),
        (b"", Unavailable),
        (None, Unavailable),
    ],
)
async def test_a_greeting_that_is_none_is_the_servers_matter(greeting: bytes | None, expected: type[TaskError]) -> None:
    async with server_that_greets(greeting) as port, mailer_at(port, connect_timeout=0.3) as mailer:
        assert type(await failed(mailer)) is expected
        await refused_check(mailer, expected)


async def test_cc_and_bcc_are_on_the_envelope_and_bcc_is_no_header() -> None:
    postbox = Postbox()
    email = mail(
        "ann@example.org", "Bob <bob@bücher.example>", cc="cy@example.org", bcc=["di@example.org"], reply_to="re@x.org"
    )
    async with plain(postbox) as mailer:
        result = await sent(mailer, email)
    [received] = postbox.mails
    assert received.recipients == ["ann@example.org", "bob@xn--bcher-kva.example", "cy@example.org", "di@example.org"]
    assert set(result["delivered"]) == set(received.recipients)
    assert received.message["To"] == "ann@example.org, Bob <bob@xn--bcher-kva.example>"
    assert (received.message["Cc"], received.message["Reply-To"]) == ("cy@example.org", "re@x.org")
    assert b"di@example.org" not in received.data


async def test_html_attachments_of_megabytes_and_any_subject_arrive_whole() -> None:
    content = bytes(range(256)) * 20_480
    email = Email(
        to="ann@example.org",
        subject="Grüße 日本語 " * 10,
        body=".\n..\nfrom here\r.\n",
        html="<p>Grüße</p>",
        attachments=[Attachment(filename="Ünï.bin", content=base64.b64encode(content).decode())],
    )
    postbox = Postbox()
    async with plain(postbox) as mailer:
        await sent(mailer, email)
    [received] = postbox.mails
    text, html, attachment = [part for part in received.message.walk() if not part.is_multipart()]
    assert received.message["Subject"].split() == email.subject.split()
    assert text.get_content().splitlines() == [".", "..", "from here", "."]
    assert html.get_content().strip() == "<p>Grüße</p>"
    assert attachment.get_filename() == "Ünï.bin"
    assert attachment.get_content() == content


async def test_a_mail_of_html_alone_arrives_with_a_text() -> None:
    postbox = Postbox()
    async with plain(postbox) as mailer:
        await sent(mailer, Email(to="ann@example.org", subject="Hello", html="<p>Grüße</p>"))
    [received] = postbox.mails
    text, html = received.message.iter_parts()
    assert (text.get_content().strip(), html.get_content().strip()) == ("Grüße", "<p>Grüße</p>")


async def test_a_local_part_beyond_ascii_goes_by_smtputf8() -> None:
    postbox = Postbox()
    async with plain(postbox, options={"enable_SMTPUTF8": True}) as mailer:
        await sent(mailer, mail("jörg@bücher.example"))
    [received] = postbox.mails
    assert received.recipients == ["jörg@xn--bcher-kva.example"]
    assert "SMTPUTF8" in received.options


async def test_without_smtputf8_such_an_address_is_permanent() -> None:
    postbox = Postbox()
    async with plain(postbox) as mailer:
        error = await failed(mailer, mail("jörg@bücher.example"))
        assert type(error) is Permanent
        assert "SMTPUTF8" in error.reason
        await sent(mailer)
    assert len(postbox.mails) == 1


async def test_refused_recipients_are_named_and_only_deferred_ones_tried_again() -> None:
    postbox = Postbox()
    postbox.replies["bob@example.org"] = ["450 4.2.0 later"]
    postbox.replies["cy@example.org"] = ["550 5.1.1 unknown"]
    email = mail("ann@example.org", "bob@example.org", "cy@example.org")
    async with plain(postbox) as mailer:
        first = await failed(mailer, email)
        assert type(first) is Transient
        assert first.progress == {
            "messageId": "<0199@example.org>",
            "delivered": {"ann@example.org": "250 2.0.0 Ok"},
            "refused": {"cy@example.org": "550 5.1.1 unknown"},
            "deferred": {"bob@example.org": "450 4.2.0 later"},
        }
        result = await sent(mailer, email, progress=first.progress)
    assert [received.recipients for received in postbox.mails] == [["ann@example.org"], ["bob@example.org"]]
    assert set(result["delivered"]) == {"ann@example.org", "bob@example.org"}
    assert result["refused"] == {"cy@example.org": "550 5.1.1 unknown"}
    assert result["deferred"] == {}
    assert postbox.connections == 1


async def test_when_all_refuse_it_is_permanent_and_the_connection_is_used_again() -> None:
    postbox = Postbox()
    postbox.replies["ann@example.org"] = ["550 5.1.1 unknown"]
    async with plain(postbox) as mailer:
        error = await failed(mailer)
        assert type(error) is Permanent
        assert error.progress is not None
        await sent(mailer)
    assert postbox.connections == 1


@pytest.mark.parametrize("reply", ["500 what?", DROP])
async def test_a_connection_that_cannot_be_reset_is_not_used_again(reply: str) -> None:
    postbox = Postbox()
    postbox.replies["ann@example.org"] = ["550 5.1.1 unknown"]
    postbox.replies["RSET"] = [reply]
    async with plain(postbox) as mailer:
        assert type(await failed(mailer)) is Permanent
        await sent(mailer)
    assert postbox.connections == 2


async def test_a_full_mailbox_waits_for_hours() -> None:
    postbox = Postbox()
    postbox.replies["ann@example.org"] = ["452 4.2.2 mailbox full"]
    async with plain(postbox) as mailer:
        error = await failed(mailer)
    assert isinstance(error, Transient)
    assert error.retry_after == 7200.0


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("451 4.3.0 not now", Transient),
        ("554 5.6.0 spam", Permanent),
        ("552 5.3.4 too big", Permanent),
        ("421 4.3.2 shutting down", Throttled),
        ("454 Throttling failure: Maximum sending rate exceeded.", Throttled),
        ("550 5.4.5 daily quota", Misconfigured),
    ],
)
async def test_the_reply_to_the_mail_itself_counts_for_everybody(reply: str, expected: type[TaskError]) -> None:
    postbox = Postbox()
    postbox.replies["DATA"] = [reply]
    async with plain(postbox) as mailer:
        assert type(await failed(mailer, mail("ann@example.org", "bob@example.org"))) is expected
        assert set((await sent(mailer))["delivered"]) == {"ann@example.org"}


async def test_a_mail_beyond_the_servers_size_is_permanent_before_it_is_sent() -> None:
    postbox = Postbox()
    async with plain(postbox, options={"data_size_limit": 2000}) as mailer:
        error = await failed(mailer, Email(to="ann@example.org", subject="s", body="x" * 3000))
    assert type(error) is Permanent
    assert "552" in error.reason


async def test_a_mail_beyond_our_own_size_is_permanent() -> None:
    async with plain(Postbox(), max_message_bytes=1024) as mailer:
        error = await failed(mailer, Email(to="ann@example.org", subject="s", body="x" * 3000))
    assert type(error) is InvalidPayload
    assert "max_message_bytes allows 1024" in error.reason


@pytest.mark.parametrize("reply", ["501 5.5.4 SMTPUTF8 not supported", "504 no such parameter", "555 5.5.4 SIZE"])
async def test_a_parameter_that_the_mail_itself_needs_is_the_mail_s_own_fault(reply: str) -> None:
    postbox = Postbox()
    postbox.replies["MAIL"] = [reply]
    async with plain(postbox) as mailer:
        assert type(await failed(mailer)) is Permanent


@pytest.mark.parametrize(
    "reply", ["550 5.7.1 this Reply-To is not allowed", "552 5.2.3 too large", "554 5.6.0 bad header"]
)
async def test_what_the_server_dislikes_of_the_content_is_the_mail_s_own_fault(reply: str) -> None:
    postbox = Postbox()
    postbox.replies["DATA"] = [reply]
    async with plain(postbox) as mailer:
        assert type(await failed(mailer, mail(reply_to="x@example.org", headers={"X-Odd": "1"}))) is Permanent


async def test_a_refused_sender_is_misconfigured_because_it_is_a_setting() -> None:
    postbox = Postbox()
    postbox.replies["MAIL"] = ["553 5.7.1 not your address"]
    async with plain(postbox) as mailer:
        assert type(await failed(mailer)) is Misconfigured


@pytest.mark.parametrize("what", [DROP, HANG])
async def test_an_answer_lost_after_the_mail_was_sent_is_ambiguous(what: str) -> None:
    postbox = Postbox()
    postbox.replies["DATA"] = [what]
    postbox.replies["bob@example.org"] = ["550 5.1.1 unknown"]
    async with plain(postbox, data_timeout=0.2) as mailer:
        error = await failed(mailer, mail("ann@example.org", "bob@example.org"))
    assert type(error) is Ambiguous
    assert error.progress is not None
    assert error.progress["delivered"] == {}


@pytest.mark.parametrize("command", ["MAIL", "ann@example.org"])
@pytest.mark.parametrize("what", [DROP, HANG])
async def test_a_connection_lost_before_the_mail_was_sent_is_unavailable(command: str, what: str) -> None:
    postbox = Postbox()
    postbox.replies[command] = [what]
    async with plain(postbox, command_timeout=0.2) as mailer:
        assert type(await failed(mailer)) is Unavailable
        await sent(mailer)
    assert len(postbox.mails) == 1


@pytest.mark.parametrize("how", [DROP, HANG, "421 4.4.2 idle for too long"])
async def test_a_connection_that_died_idle_is_replaced_once(how: str) -> None:
    postbox = Postbox()
    async with plain(postbox, command_timeout=0.2) as mailer:
        await sent(mailer)
        postbox.replies["MAIL"] = [how]
        await sent(mailer)
        assert (len(postbox.mails), postbox.connections) == (2, 2)
        postbox.replies["MAIL"] = [how, how]
        assert isinstance(await failed(mailer), Unavailable)
    assert postbox.connections == 3


async def test_one_connection_carries_many_mails_and_one_too_old_is_replaced() -> None:
    postbox = Postbox()
    async with plain(postbox, connections=1) as mailer:
        await asyncio.gather(*(sent(mailer) for _ in range(10)))
    assert (len(postbox.mails), postbox.connections) == (10, 1)
    async with plain(postbox, connections=1, max_connection_age=1e-9) as mailer:
        await sent(mailer)
        await sent(mailer)
    assert postbox.connections == 3


async def test_as_many_mails_go_at_once_as_there_are_connections() -> None:
    postbox = Postbox()
    postbox.together = asyncio.Barrier(3)
    async with plain(postbox, connections=3) as mailer:
        await asyncio.gather(*(sent(mailer) for _ in range(12)))
    assert (len(postbox.mails), postbox.connections) == (12, 3)


async def test_a_mail_cut_off_in_the_middle_leaves_no_connection_behind() -> None:
    postbox = Postbox()
    postbox.replies["DATA"] = [HANG]
    async with plain(postbox, connections=1) as mailer:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await mailer.send(mail(), message_id="1", date=DATE)
        await sent(mailer)
    assert (len(postbox.mails), postbox.connections) == (1, 2)


ENDLESS = b"250-x\r\n" * 100_000


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"354 go on\r\n",
        b"250",
        b"1",
        b"\xff\xfe\r\n",
        b"\xb2\xb5\xb0 Ok\r\n",
        b"100 perhaps\r\n",
        b"334 go on\r\n",
        b"999 Ok\r\n",
        b"-50 Ok\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"250 " + b"x" * 100_000 + b"\r\n",
        b"x" * 100_000,
        ENDLESS,
    ],
    ids=lambda said: str(said[:20]),
)
async def test_once_the_mail_was_sent_only_a_reply_that_settles_it_is_more_than_ambiguous(said: bytes) -> None:
    async with server_that_says(content=said) as port, mailer_at(port, data_timeout=0.5) as mailer:
        assert type(await failed(mailer)) is Ambiguous


@pytest.mark.parametrize("command", ["greeting", "ehlo", "mail", "rcpt", "data"])
@pytest.mark.parametrize(
    "said",
    [b"", b"\xff\xfe\r\n", b"100 perhaps\r\n", b"999 Ok\r\n", b"x" * 100_000, ENDLESS],
    ids=lambda said: str(said[:20]),
)
async def test_before_the_mail_was_sent_a_broken_server_is_unavailable(command: str, said: bytes) -> None:
    async with server_that_says(**{command: said}) as port, mailer_at(port, command_timeout=0.5) as mailer:
        assert type(await failed(mailer)) is Unavailable


async def test_a_yes_to_data_is_no_yes_to_the_mail() -> None:
    async with server_that_says(data=b"250 Ok\r\n") as port, mailer_at(port) as mailer:
        error = await failed(mailer)
    assert type(error) is Unavailable
    assert error.progress is not None
    assert error.progress["delivered"] == {}


async def test_a_yes_whose_text_looks_like_a_failure_is_a_yes() -> None:
    async with server_that_says(content=b"250 4.3.1 5.4.5 queued\r\n") as port, mailer_at(port) as mailer:
        assert set((await sent(mailer))["delivered"]) == {"ann@example.org"}


@pytest.mark.parametrize("challenge", [b"334 !\r\n", b"334 \xff\r\n", b"334 " + b"A" * 9 + b"\r\n", b"334 go\r\n" * 3])
async def test_an_auth_challenge_that_is_none_is_the_server_s_matter(challenge: bytes) -> None:
    ehlo = b"250-mail.test\r\n250 AUTH CRAM-MD5\r\n"
    async with (
        server_that_says(ehlo=ehlo, auth=challenge) as port,
        mailer_at(port, username="ann", password="s3cret", command_timeout=0.5) as mailer,
    ):
        assert isinstance(await failed(mailer), Unavailable | Misconfigured)
        with pytest.raises((Unavailable, Misconfigured)):
            await mailer.check()


async def test_a_check_s_odd_answer_is_the_server_s_matter() -> None:
    for said in (b"", b"\xff\r\n", b"999 Ok\r\n", ENDLESS):
        async with server_that_says(noop=said) as port, mailer_at(port, command_timeout=0.5) as mailer:
            with pytest.raises(Unavailable):
                await mailer.check()


async def test_replies_without_end_take_no_memory_without_end() -> None:
    for command in ("greeting", "ehlo", "rcpt", "content"):
        async with server_that_says(**{command: b"250-x\r\n" * 2_000_000}) as port, mailer_at(port) as mailer:
            with traced_peak() as peak:
                assert isinstance(await failed(mailer), Unavailable | Ambiguous)
        assert peak.bytes < 2_000_000


class NoThreads(ThreadPoolExecutor):
    """As an executor is where the process may start no more threads."""

    def submit(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("can't start new thread")


async def test_a_mail_for_which_there_is_no_thread_or_memory_now_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without_memory(*_: Any, **__: Any) -> Message:
        raise MemoryError

    heavy = mail().model_copy(update={"body": "a" * 300_000})
    async with plain(Postbox()) as mailer:
        asyncio.get_running_loop().set_default_executor(NoThreads())
        assert type(await failed(mailer, heavy)) is Transient
        monkeypatch.setattr("taskflux.providers.smtp.compose", without_memory)
        assert type(await failed(mailer, mail())) is Transient
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
        assert type(await failed(mailer, heavy)) is Transient


@pytest.mark.parametrize("body", ["light", "heavy" * 60_000])
async def test_what_cannot_be_composed_is_the_task_s_own_fault(body: str) -> None:
    email = mail().model_copy(update={"subject": "half an emoji: \ud83d", "body": body})
    async with plain(Postbox()) as mailer:
        assert type(await failed(mailer, email)) is InvalidPayload
