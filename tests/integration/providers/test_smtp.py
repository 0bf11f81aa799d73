import asyncio
import base64
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from taskflux.providers.email import Attachment, Email
from taskflux.providers.message import Message
from taskflux.providers.smtp_replies import Throttled
from taskflux.tasks.errors import Ambiguous, InvalidPayload, Misconfigured, Permanent, TaskError, Transient, Unavailable
from tests.integration.providers.mailers import DATE, failed, mail, mailer_at, plain, refused_check, sent
from tests.integration.providers.smtp_server import (
    DROP,
    HANG,
    Postbox,
    server_that_says,
)
from tests.memory import traced_peak


@pytest.fixture(params=[False, True], ids=["one by one", "pipelining"], autouse=True)
def pipelining(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Every test talks to a server that lets us send commands together, and to one that does not."""
    offered = bool(request.param)
    monkeypatch.setattr(Postbox, "pipelining", offered)
    return offered


async def test_cc_and_bcc_are_on_the_envelope_and_bcc_is_not_a_header() -> None:
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


async def test_a_local_part_beyond_ascii_is_sent_by_smtputf8() -> None:
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
async def test_the_reply_to_the_mail_itself_counts_for_all_recipients(reply: str, expected: type[TaskError]) -> None:
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


async def test_a_mail_cut_off_in_the_middle_leaves_no_open_connection() -> None:
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


async def test_a_success_reply_to_data_does_not_accept_the_mail() -> None:
    async with server_that_says(data=b"250 Ok\r\n") as port, mailer_at(port) as mailer:
        error = await failed(mailer)
    assert type(error) is Unavailable
    assert error.progress is not None
    assert error.progress["delivered"] == {}


async def test_a_yes_whose_text_looks_like_a_failure_is_a_yes() -> None:
    async with server_that_says(content=b"250 4.3.1 5.4.5 queued\r\n") as port, mailer_at(port) as mailer:
        assert set((await sent(mailer))["delivered"]) == {"ann@example.org"}


@pytest.mark.parametrize("challenge", [b"334 !\r\n", b"334 \xff\r\n", b"334 " + b"A" * 9 + b"\r\n", b"334 go\r\n" * 3])
async def test_an_invalid_auth_challenge_counts_for_the_server(challenge: bytes) -> None:
    ehlo = b"250-mail.test\r\n250 AUTH CRAM-MD5\r\n"
    async with (
        server_that_says(ehlo=ehlo, auth=challenge) as port,
        mailer_at(port, username="ann", password="s3cret", command_timeout=0.5) as mailer,
    ):
        assert type(await failed(mailer)) is Unavailable
        await refused_check(mailer, Unavailable)


async def test_a_check_s_odd_answer_is_the_server_s_matter() -> None:
    for said in (b"", b"\xff\r\n", b"999 Ok\r\n", ENDLESS):
        async with server_that_says(noop=said) as port, mailer_at(port, command_timeout=0.5) as mailer:
            await refused_check(mailer, Unavailable)


async def test_replies_without_end_take_no_memory_without_end() -> None:
    for command in ("greeting", "ehlo", "rcpt", "content"):
        async with server_that_says(**{command: b"250-x\r\n" * 2_000_000}) as port, mailer_at(port) as mailer:
            with traced_peak() as peak:
                assert type(await failed(mailer)) is (Ambiguous if command == "content" else Unavailable)
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


REPLIES = [
    *("250 2.0.0 Ok", "250 2.0.0 Ok", "451 4.3.0 later", "452 4.2.2 full", "550 5.1.1 unknown", "552 5.3.4 too big"),
    *("421 4.3.2 closing", "454 4.7.0 slower", "530 5.7.0 log in", "554 5.7.1 Relay access denied", "200 what?"),
]


async def outcome(postbox: Postbox, said: list[dict[str, str]]) -> tuple[Any, ...]:
    """What becomes of a mail for each of these replies, in turn, and what the server has then."""
    found: list[Any] = []
    async with plain(postbox) as mailer:
        await sent(mailer)
        for replies in said:
            postbox.replies.clear()
            postbox.replies |= {name: [reply] for name, reply in replies.items()}
            try:
                found.append(await sent(mailer, mail("ann@example.org", "bob@example.org", "cy@example.org")))
            except TaskError as error:
                found.append((type(error), error.reason, error.progress))
    return found, [received.recipients for received in postbox.mails], postbox.connections


async def test_what_becomes_of_a_mail_is_the_same_with_pipelining_as_one_command_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(2920)
    commands = ["MAIL", "ann@example.org", "bob@example.org", "cy@example.org", "DATA", "RSET"]
    for _ in range(60):
        said = [{name: chance.choice(REPLIES) for name in chance.sample(commands, chance.randrange(4))} for _ in "12"]
        found = []
        for offered in (False, True):
            monkeypatch.setattr(Postbox, "pipelining", offered)
            found.append(await outcome(Postbox(), said))
        assert found[0] == found[1], said


@pytest.mark.parametrize("data", [b"354 go on\r\n", b"554 no valid recipients\r\n"])
async def test_data_that_is_accepted_for_nobody_gets_no_mail(data: bytes, pipelining: bool) -> None:
    refused = b"550 5.1.1 unknown\r\n"
    content = b"250 what mail?\r\n"
    async with server_that_says(rcpt=refused, data=data, content=content) as port, mailer_at(port) as mailer:
        for _ in range(2):
            error = await failed(mailer)
            assert type(error) is Permanent
            assert "unknown" in error.reason


async def test_the_commands_before_a_mail_are_sent_together_where_the_server_allows_it(pipelining: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in (b"220 mail.test\r\n", b"250-mail.test\r\n250-PIPELINING\r\n250 SMTPUTF8\r\n"):
            writer.write(answer)
            await reader.readuntil(b"\r\n")
        # The rest of the group has to be here before anything is answered.
        together.extend([await reader.readuntil(b"\r\n") for _ in range(3)])
        for byte in b"250 Ok\r\n250-and\r\n250 Ok\r\n250 Ok\r\n354 go on\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
        await reader.readuntil(b"\r\n.\r\n")
        writer.write(b"250 2.0.0 Ok\r\n")
        await reader.read()
        writer.close()

    together: list[bytes] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, mailer_at(server.sockets[0].getsockname()[1]) as mailer:
        result = await sent(mailer, mail("ann@example.org", "jo\u00e9@example.org"))
    assert set(result["delivered"]) == {"ann@example.org", "jo\u00e9@example.org"}
    assert together == [b"RCPT TO:<ann@example.org>\r\n", "RCPT TO:<jo\u00e9@example.org>\r\n".encode(), b"DATA\r\n"]
