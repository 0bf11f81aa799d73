from __future__ import annotations

from typing import Any

import pytest

from taskflux.providers.smtp_replies import (
    GREYLIST_WAIT,
    QUOTA_WAIT,
    Deliveries,
    Kind,
    Reply,
    Stage,
    Throttled,
    judge,
)
from taskflux.tasks.errors import Misconfigured, Permanent, Transient, Unavailable

RCPT, MAIL, DATA, SESSION = Stage.RECIPIENT, Stage.SENDER, Stage.DATA, Stage.SESSION
CONTENT = Stage.MAIL


@pytest.mark.parametrize(
    ("code", "text", "stage", "kind"),
    [
        (250, "2.1.5 Ok", RCPT, Kind.ACCEPTED),
        (251, "will forward", RCPT, Kind.ACCEPTED),
        (354, "go on", DATA, Kind.ACCEPTED),
        (450, "4.2.0 later", RCPT, Kind.DEFERRED),
        (451, "4.3.0 later", DATA, Kind.DEFERRED),
        (452, "4.2.2 mailbox full", RCPT, Kind.DEFERRED),
        (454, "4.7.1 relay not yet", RCPT, Kind.DEFERRED),
        (550, "5.1.1 unknown", RCPT, Kind.REFUSED),
        (552, "5.3.4 too big", DATA, Kind.REFUSED),
        (552, "5.3.4 too big", MAIL, Kind.REFUSED),
        (552, "5.5.3 too many recipients", RCPT, Kind.DEFERRED),
        (554, "5.7.1 spam", DATA, Kind.REFUSED),
        (421, "4.3.2 shutting down", RCPT, Kind.THROTTLED),
        (421, "too many connections", SESSION, Kind.THROTTLED),
        (454, "4.7.0 too many logins", SESSION, Kind.THROTTLED),
        (454, "Throttling failure: Maximum sending rate exceeded.", DATA, Kind.THROTTLED),
        (452, "4.3.1 insufficient system storage", MAIL, Kind.UNAVAILABLE),
        (450, "4.3.2 not now", SESSION, Kind.UNAVAILABLE),
        (-1, "garbage", RCPT, Kind.MEANINGLESS),
        (100, "perhaps", CONTENT, Kind.MEANINGLESS),
        (354, "go on", RCPT, Kind.MEANINGLESS),
        (354, "go on", CONTENT, Kind.MEANINGLESS),
        (334, "go on", SESSION, Kind.MEANINGLESS),
        (250, "2.0.0 Ok", DATA, Kind.MEANINGLESS),
        (250, "4.3.1 5.4.5 Ok", CONTENT, Kind.ACCEPTED),
        (600, "odd", CONTENT, Kind.MEANINGLESS),
        (501, "5.5.4 unsupported option", MAIL, Kind.REFUSED),
        (504, "parameter not implemented", MAIL, Kind.REFUSED),
        (501, "5.1.7 bad sender", MAIL, Kind.MISCONFIGURED),
        (535, "5.7.8 bad credentials", SESSION, Kind.MISCONFIGURED),
        (530, "5.7.0 authentication required", MAIL, Kind.MISCONFIGURED),
        (530, "5.7.1 authentication required", RCPT, Kind.MISCONFIGURED),
        (554, "5.7.1 your address is blocked", SESSION, Kind.MISCONFIGURED),
        (553, "5.7.1 sender not owned by user", MAIL, Kind.MISCONFIGURED),
        (550, "5.4.5 daily sending quota exceeded", DATA, Kind.MISCONFIGURED),
    ],
)
def test_a_reply_is_about_the_recipient_the_mail_or_the_server(code: int, text: str, stage: Stage, kind: Kind) -> None:
    assert judge(code, text, stage).kind is kind


@pytest.mark.parametrize(
    ("code", "text", "seconds"),
    [
        (452, "4.2.2 mailbox full", QUOTA_WAIT),
        (452, "no room", QUOTA_WAIT),
        (450, "4.7.1 come back", GREYLIST_WAIT),
        (451, "Greylisted, try again", GREYLIST_WAIT),
        (452, "4.5.3 too many recipients", 0.0),
        (450, "4.2.1 busy", 0.0),
        (550, "5.2.2 full for good", 0.0),
    ],
)
def test_a_full_mailbox_waits_for_hours_and_greylisting_for_minutes(code: int, text: str, seconds: float) -> None:
    assert judge(code, text, RCPT).retry_after == seconds


def test_what_the_server_says_of_itself_is_raised() -> None:
    judge(550, "5.1.1 unknown", RCPT).raise_for_server()
    with pytest.raises(Throttled, match="421 busy"):
        judge(421, "busy", MAIL).raise_for_server()
    with pytest.raises(Unavailable):
        judge(452, "4.3.1 disk full", MAIL).raise_for_server()
    with pytest.raises(Misconfigured, match=r"535 5\.7\.8 no"):
        judge(535, "5.7.8 no", SESSION).raise_for_server()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("4.2.2 The mailbox is full", QUOTA_WAIT), ("refused with 4.2.2", 0.0), ("4.2.2.7 odd", 0.0)],
)
def test_only_a_leading_enhanced_status_counts(text: str, seconds: float) -> None:
    assert judge(450, text, RCPT).retry_after == seconds


def test_a_text_of_odd_bytes_becomes_one_short_printable_line() -> None:
    reply = judge(550, "5.1.1 f\udcfcr\x00 niemand\nzweite " + "x" * 1000, RCPT)
    assert reply.text.startswith("5.1.1 f\ufffdr niemand zweite xxx")
    assert len(reply.text) == 400
    reply.text.encode()


def test_a_reply_reads_as_the_server_gave_it() -> None:
    assert str(Reply(250, "2.0.0 Ok", Kind.ACCEPTED)) == "250 2.0.0 Ok"
    assert str(Reply(250, "", Kind.ACCEPTED)) == "250"


OK = Reply(250, "2.0.0 Ok", Kind.ACCEPTED)
LATER = Reply(450, "4.2.0 later", Kind.DEFERRED)
QUOTA = Reply(452, "4.2.2 full", Kind.DEFERRED, retry_after=7200.0)
NO = Reply(550, "5.1.1 unknown", Kind.REFUSED)


def of(*wanted: str) -> Deliveries:
    return Deliveries(wanted, "<1@x>")


def resumed(progress: dict[str, Any], *wanted: str, message_id: str = "<1@x>") -> Deliveries:
    deliveries = Deliveries(wanted, message_id)
    deliveries.resume(progress)
    return deliveries


def test_a_mail_that_reached_one_recipient_succeeds_and_names_the_refused() -> None:
    deliveries = of("a@x", "b@x")
    deliveries.note({"a@x": OK, "b@x": NO})
    assert deliveries.conclude() == {
        "messageId": "<1@x>",
        "delivered": {"a@x": "250 2.0.0 Ok"},
        "refused": {"b@x": "550 5.1.1 unknown"},
        "deferred": {},
    }


def test_a_deferred_recipient_makes_it_transient_and_progress_says_who_has_it() -> None:
    deliveries = of("a@x", "b@x", "c@x")
    deliveries.note({"a@x": OK, "b@x": LATER, "c@x": NO})
    with pytest.raises(Transient, match="1 of 3 recipients deferred: b@x: 450") as failure:
        deliveries.conclude()
    assert failure.value.progress == deliveries.progress()
    assert failure.value.retry_after is None


def test_the_wait_is_the_shortest_that_any_recipient_asks_for() -> None:
    deliveries = of("a@x", "b@x")
    deliveries.note({"a@x": QUOTA, "b@x": QUOTA})
    assert deliveries.retry_after == 7200.0
    deliveries.note({"a@x": QUOTA, "b@x": LATER})
    assert deliveries.retry_after is None


def test_only_when_all_recipients_refuse_it_is_a_mail_permanent() -> None:
    deliveries = of("a@x", "b@x")
    deliveries.note({"a@x": NO, "b@x": NO})
    with pytest.raises(Permanent, match="every recipient was refused: a@x: 550") as failure:
        deliveries.conclude()
    assert failure.value.progress == deliveries.progress()


def test_the_next_attempt_asks_the_deferred_only() -> None:
    first = of("a@x", "b@x", "c@x")
    first.note({"a@x": OK, "b@x": LATER, "c@x": NO})
    second = resumed(first.progress(), "a@x", "b@x", "c@x")
    assert second.open == ["b@x"]
    second.note({"b@x": NO})
    assert second.conclude()["delivered"] == {"a@x": "250 2.0.0 Ok"}


def test_a_replay_asks_the_refused_again_but_not_who_has_the_mail() -> None:
    first = of("a@x", "b@x")
    first.note({"a@x": OK, "b@x": NO})
    assert resumed(first.progress(), "a@x", "b@x", message_id="<1.1@x>").open == ["b@x"]


@pytest.mark.parametrize("progress", [{}, {"delivered": None}, {"delivered": [1], "refused": "x"}, {"other": 1}])
def test_progress_of_another_form_is_ignored(progress: dict[str, object]) -> None:
    assert resumed(progress, "a@x").open == ["a@x"]


def test_a_recipient_taken_off_the_mail_is_forgotten() -> None:
    first = of("a@x", "b@x")
    first.note({"a@x": OK, "b@x": NO})
    assert resumed(first.progress(), "c@x").progress()["delivered"] == {}


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (554, "5.7.1 <ann@example.org>: Relay access denied"),  # Postfix
        (454, "4.7.1 <ann@example.org>: Relay access denied"),  # Postfix that defers it
        (554, "5.7.1 <client.example.org[192.0.2.1]>: Client host rejected: Access denied"),
        (554, "5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org"),
        (504, "5.5.2 <localhost>: Helo command rejected: need fully-qualified hostname"),
        (550, "5.1.8 <tasks@nowhere.example>: Sender address rejected: Domain not found"),
        (553, "5.7.1 <tasks@example.org>: Sender address rejected: not logged in"),
        (554, "5.7.1 Access denied"),
        (550, "relay not permitted"),  # Exim
        (550, "5.7.1 <ann@example.org>... Relaying denied. Proper authentication required."),  # Sendmail
        (550, "5.7.54 SMTP; Unable to relay recipient in non-accepted domain"),  # Exchange
        (550, "5.7.1 Unable to relay for ann@example.org"),
        (550, "5.7.1 Client was not authenticated"),
        (553, "sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)"),  # qmail
        (513, "Relaying denied."),  # Courier
        (503, "This mail server requires authentication when attempting to send to a non-local e-mail address."),
        (550, "5.7.1 Relaying not allowed"),
        (550, "not authorized to relay through this server"),
        (550, "5.7.1 we do not relay"),
        (550, "5.7.64 TenantAttribution; Relay Access Denied"),
        (550, "Please authenticate first"),
        (503, "AUTH first"),
        (503, "5.5.1 Error: authenticate first"),
        (550, "You need to authenticate to relay"),
        (550, "Please turn on SMTP Authentication in your mail client"),  # cPanel
        (550, "5.7.1 This system is not configured to relay mail"),
        (550, "5.7.1 Rejected - relay attempt"),
        (550, "not local host example.org, not a gateway"),
        (550, "administrative prohibition: relaying"),
    ],
)
def test_what_servers_say_to_a_client_that_they_do_not_relay_for_is_a_denial(code: int, text: str) -> None:
    assert judge(code, text, RCPT).denied


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (250, "2.1.5 Ok, relay access denied"),
        (550, "5.1.1 <relay@example.org>: User unknown"),
        (550, "5.4.1 Recipient address rejected: Access denied"),  # Exchange Online: an unknown recipient
        (554, "5.7.1 <ann@example.org>: Recipient address rejected: Access denied"),  # Postfix: of this one, or of us
        (450, "4.7.1 <ann@example.org>: Recipient address rejected: Greylisted, see http://relay.example.org"),
        (450, "4.7.1 Client host rejected: cannot find your hostname"),  # DNS, which may answer the next time
        (454, "4.7.1 relay not yet"),
        (550, "5.2.1 mailbox disabled, access denied"),
        (550, "5.7.1 RESOLVER.RST.AuthRequired; authentication required"),  # Exchange: of this group
        (554, "5.7.1 spam"),
        (552, "5.2.2 mailbox full"),
    ],
)
def test_what_is_about_a_recipient_or_the_moment_is_not_a_denial(code: int, text: str) -> None:
    assert not judge(code, text, RCPT).denied


def test_a_denial_that_leaves_open_to_whom_says_so() -> None:
    reply = judge(554, "5.7.1 <ann@example.org>: Recipient address rejected: Access denied", RCPT)
    assert (reply.barred, reply.denied, reply.kind) == (True, False, Kind.REFUSED)
    assert not judge(554, reply.text, CONTENT).barred
    assert not judge(554, reply.text, DATA).barred
    assert not judge(550, "5.4.1 Recipient address rejected: Access denied", RCPT).barred
    assert not judge(554, "5.7.1 <ann@example.org>: Relay access denied", RCPT).barred
    assert not judge(250, "2.1.5 Recipient address rejected: Access denied", RCPT).barred
