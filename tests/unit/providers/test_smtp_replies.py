import pytest

from taskflux.providers.smtp_replies import (
    GREYLIST_WAIT,
    QUOTA_WAIT,
    Kind,
    Reply,
    Stage,
    Throttled,
    judge,
)
from taskflux.tasks.errors import Misconfigured, Unavailable

RCPT, MAIL, DATA, SESSION = Stage.RECIPIENT, Stage.SENDER, Stage.DATA, Stage.SESSION


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
        (452, "4.3.1 insufficient system storage", MAIL, Kind.AWAY),
        (450, "4.3.2 not now", SESSION, Kind.AWAY),
        (-1, "garbage", RCPT, Kind.AWAY),
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
