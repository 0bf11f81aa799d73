import asyncio
from pathlib import Path

import pytest
import trustme
from aiosmtplib.auth import auth_xoauth2_encode

from taskflux.providers.smtp_replies import Throttled
from taskflux.tasks.errors import Misconfigured, Permanent, TaskError, Unavailable
from tests.integration.providers.mailers import DATE, failed, mail, mailer_at, over_starttls, plain, refused_check, sent
from tests.integration.providers.smtp_server import (
    DROP,
    ONLY_XOAUTH2,
    Postbox,
    TokenPostbox,
    server_that_greets,
    server_that_says,
    smtp_server,
)


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
async def test_a_certificate_that_is_not_trusted_is_misconfigured(tls: str, certificate: trustme.LeafCert) -> None:
    async with smtp_server(Postbox(), tls=tls, certificate=certificate) as postbox:
        async with mailer_at(postbox.port, tls=tls) as mailer:
            assert "is not trusted" in (await refused_check(mailer, Misconfigured)).reason
        async with mailer_at(postbox.port, tls=tls, tls_verify=False) as mailer:
            await mailer.check()


async def test_a_server_without_starttls_is_never_spoken_to_in_plaintext(ca_file: str) -> None:
    async with smtp_server(Postbox()) as postbox, mailer_at(postbox.port, tls="starttls", ca_file=ca_file) as mailer:
        assert "STARTTLS" in (await refused_check(mailer, Misconfigured)).reason
    assert postbox.mails == []


async def test_implicit_tls_to_a_plaintext_server_names_the_setting(ca_file: str) -> None:
    async with smtp_server(Postbox()) as postbox, mailer_at(postbox.port, tls="implicit", ca_file=ca_file) as mailer:
        assert "set tls to starttls" in (await refused_check(mailer, Misconfigured)).reason


async def test_a_wrong_password_is_tried_once_and_is_misconfigured(certificate: trustme.LeafCert, ca_file: str) -> None:
    postbox = Postbox(credentials=("ann", "s3cret"))
    async with over_starttls(postbox, certificate, ca_file, username="ann", password="wrong") as mailer:
        error = await failed(mailer)
    assert isinstance(error, Misconfigured)
    assert "535" in error.reason
    assert postbox.logins == ["PLAIN"]


async def test_too_many_logins_are_throttling_and_not_a_wrong_password(
    certificate: trustme.LeafCert, ca_file: str
) -> None:
    postbox = Postbox(credentials=("ann", "s3cret"))
    postbox.replies["AUTH"] = ["454 4.7.0 too many login attempts"]
    async with over_starttls(postbox, certificate, ca_file, username="ann", password="s3cret") as mailer:
        assert isinstance(await failed(mailer), Throttled)


async def test_a_server_with_only_xoauth2_gets_the_current_token_at_each_login(
    certificate: trustme.LeafCert, ca_file: str, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("old\n")
    postbox = TokenPostbox(credentials=("ann", "old"))
    secret = {"username": "ann", "access_token_file": str(token)}
    async with over_starttls(
        postbox, certificate, ca_file, options=ONLY_XOAUTH2, max_connection_age=1e-9, **secret
    ) as mailer:
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
        ({"access_token": "wrong"}, "535"),
        ({"password": "right"}, "set TASKFLUX_SMTP__ACCESS_TOKEN_FILE"),
    ],
)
async def test_a_wrong_secret_is_answered_with_the_setting(secret: dict[str, str], sentence: str) -> None:
    postbox = TokenPostbox(credentials=("ann", "right"))
    async with plain(postbox, options=ONLY_XOAUTH2, username="ann", **secret) as mailer:
        assert sentence in (await refused_check(mailer, Misconfigured)).reason


async def test_an_access_token_from_the_settings_is_used() -> None:
    postbox = TokenPostbox(credentials=("ann", "right"))
    async with plain(postbox, options=ONLY_XOAUTH2, username="ann", access_token="right") as mailer:
        await sent(mailer)
    assert postbox.logins == ["XOAUTH2"]


@pytest.mark.parametrize("status", [b"500 5.5.2 unknown: AUTH XOAUTH2 ", b"251 Ok: "])
async def test_a_token_that_the_server_repeats_is_in_no_error(status: bytes) -> None:
    token = "ya29." + "T0k3n-" * 20
    for said in (auth_xoauth2_encode("ann@example.org", token), token.encode()):
        ehlo = b"250-mail.test\r\n250 AUTH XOAUTH2\r\n"
        async with (
            server_that_says(ehlo=ehlo, auth=status + said + b" please\r\n") as port,
            mailer_at(port, username="ann@example.org", access_token=token) as mailer,
        ):
            error = await failed(mailer)
        assert "… please" in error.reason
        assert said.decode()[10:50] not in error.reason


async def test_a_server_without_xoauth2_is_answered_with_the_setting() -> None:
    async with plain(Postbox(credentials=("ann", "s")), username="ann", access_token="t") as mailer:
        assert "set TASKFLUX_SMTP__PASSWORD" in (await refused_check(mailer, Misconfigured)).reason


@pytest.mark.parametrize("secret", ["password", "access_token"])
async def test_a_server_whose_ways_of_auth_we_do_not_know_is_answered_with_them(secret: str) -> None:
    ehlo = b"250-mail.test\r\n250 AUTH OAUTHBEARER GSSAPI\r\n"
    async with server_that_says(ehlo=ehlo) as port, mailer_at(port, username="ann", **{secret: "s"}) as mailer:
        reason = (await refused_check(mailer, Misconfigured)).reason
    assert reason.endswith("offers only unsupported AUTH mechanisms: GSSAPI, OAUTHBEARER")


async def test_many_mails_at_once_with_a_wrong_password_are_one_failed_login(
    certificate: trustme.LeafCert, ca_file: str
) -> None:
    postbox = Postbox(credentials=("ann", "s3cret"))
    async with over_starttls(postbox, certificate, ca_file, username="ann", password="wrong") as mailer:
        errors = await asyncio.gather(*(failed(mailer) for _ in range(14)))  # more than connections
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
    async with over_starttls(postbox, certificate, ca_file, username="ann", password="s3cret") as mailer:
        assert type(await failed(mailer)) is Permanent


SENDER = "tasks@example.org"
BARRED = "554 5.7.1 <{}>: Recipient address rejected: Access denied"


async def test_access_that_is_denied_to_our_sender_as_well_is_misconfigured() -> None:
    postbox = Postbox()
    for address in ("ann@example.org", "bob@example.org", SENDER):
        postbox.replies[address] = [BARRED.format(address)] * 3
    async with plain(postbox) as mailer:
        error = await failed(mailer, mail("ann@example.org", "bob@example.org"))
        assert type(error) is Misconfigured
        assert "ann@" not in error.reason
        await refused_check(mailer, Misconfigured)
        postbox.replies.clear()
        await mailer.check()
        await sent(mailer, mail("ann@example.org", "bob@example.org"), progress=error.progress)
    assert len(postbox.mails) == 1


async def test_a_denial_to_one_decides_on_the_access_denied_to_another() -> None:
    postbox = Postbox()
    postbox.replies["ann@example.org"] = [BARRED.format("ann@example.org")]
    postbox.replies["bob@example.org"] = [DENIALS[0]]
    async with plain(postbox) as mailer:
        assert type(await failed(mailer, mail("ann@example.org", "bob@example.org"))) is Misconfigured


async def test_access_that_is_denied_to_a_recipient_alone_is_that_one_s_matter() -> None:
    postbox = Postbox()
    postbox.replies["bob@example.org"] = [BARRED.format("bob@example.org")] * 2
    async with plain(postbox) as mailer:
        assert type(await failed(mailer, mail("bob@example.org"))) is Permanent
        await mailer.check()
        await sent(mailer, mail("ann@example.org"))
        postbox.replies[SENDER] = [BARRED.format(SENDER)] * 2
        assert type(await failed(mailer, mail(SENDER))) is Permanent
    assert postbox.connections == 2  # one of them the check's


async def test_nothing_is_asked_once_the_mail_itself_was_sent() -> None:
    postbox = Postbox()
    postbox.replies["DATA"] = [BARRED.format("ann@example.org")]
    postbox.replies["MAIL"] = ["250 Ok", DROP]
    async with plain(postbox) as mailer:
        assert type(await failed(mailer)) is Permanent
        assert postbox.replies["MAIL"] == [DROP]


async def test_a_check_asks_nothing_in_the_name_of_a_sender_beyond_ascii() -> None:
    postbox = Postbox()
    postbox.replies["ann@example.org"] = [DENIALS[0]]
    async with plain(postbox, options={"enable_SMTPUTF8": True}, sender="jörg@example.org") as mailer:
        assert type(await failed(mailer)) is Misconfigured
        await mailer.check()


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
    async with over_starttls(postbox, certificate, ca_file) as mailer:
        assert isinstance(await failed(mailer), Misconfigured)


async def test_a_port_without_a_listener_is_unavailable() -> None:
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
async def test_an_invalid_greeting_counts_for_the_server(greeting: bytes | None, expected: type[TaskError]) -> None:
    async with server_that_greets(greeting) as port, mailer_at(port, connect_timeout=0.3) as mailer:
        assert type(await failed(mailer)) is expected
        await refused_check(mailer, expected)
