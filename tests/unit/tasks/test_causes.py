"""Failures with one cause have one fingerprint, and those with two causes have two, in messages as they are."""

from __future__ import annotations

import time
from itertools import combinations

import pytest

from taskflux.tasks.causes import LONGEST_MESSAGE, VERSION, cause_of, normalised

# A row is a cause: its class, and messages that it has been seen with. Where they come from: `providers/` makes those
# about SMTP and SMS, with texts of Postfix, Exchange, Gmail and MSG91; Python and its libraries make the others.
CAUSES: tuple[tuple[str, str, list[str]], ...] = (
    (
        "unknown user",
        "Permanent",
        [
            "every recipient was refused: ann@example.org: 550 5.1.1 <ann@example.org>: Recipient address"
            " rejected: User"
            " unknown in virtual mailbox table",
            "every recipient was refused: bob.o'neil@mail.example.com: 550 5.1.1 <bob.o'neil@mail.example.com>:"
            " Recipient"
            " address rejected: User unknown in virtual mailbox table",
        ],
    ),
    (
        "unknown user at Gmail",
        "Permanent",
        [
            "every recipient was refused: ann@gmail.com: 550 5.1.1 The email account that you tried to reach does not"
            " exist. https://support.google.com/mail/?p=NoSuchUser 98e67ed59e1d1-2f7a1c3d4e5mr123456a91.42 - gsmtp",
            "every recipient was refused: x@gmail.com: 550 5.1.1 The email account that you tried to reach does not"
            " exist. https://support.google.com/mail/?p=NoSuchUser d9443c01a7336-23e2f4a6b8cmr7654b2d.7 - gsmtp",
        ],
    ),
    (
        "blocked for spam",
        "Permanent",
        [
            "every recipient was refused: ann@example.org: 550 5.7.1 Service unavailable; client [203.0.113.7] blocked"
            " using zen.spamhaus.org",
            "every recipient was refused: bob@example.org: 550 5.7.1 Service unavailable; client"
            " [198.51.100.200] blocked"
            " using zen.spamhaus.org",
        ],
    ),
    (
        "mailbox full",
        "Transient",
        [
            "1 of 2 recipients deferred: ann@example.org: 452 4.2.2 The recipient's inbox is out of storage space",
            "3 of 12 recipients deferred: zoe@example.net: 452 4.2.2 The recipient's inbox is out of storage space",
        ],
    ),
    (
        "greylisted",
        "Transient",
        [
            "1 of 1 recipients deferred: ann@example.org: 451 4.7.1 Greylisting in action, please come back in"
            " 00:04:59",
            "2 of 2 recipients deferred: bob@example.org: 451 4.7.1 Greylisting in action, please come back in"
            " 00:01:07",
        ],
    ),
    (
        "domain does not exist",
        "Permanent",
        [
            "every recipient was refused: a@nowhere.invalid: 550 5.1.2 <a@nowhere.invalid>: Recipient address rejected:"
            " Domain not found",
            "every recipient was refused: b@no.example: 550 5.1.2 <b@no.example>: Recipient address rejected:"
            " Domain not found",
        ],
    ),
    (
        "no code of RFC 3463",
        "Permanent",
        [
            "every recipient was refused: a@example.org: 550 no such user here",
            "every recipient was refused: b@example.org: 550 no such user here",
        ],
    ),
    (
        "another code, the same words",
        "Permanent",
        [
            "every recipient was refused: a@example.org: 553 no such user here",
        ],
    ),
    (
        "wrong password",
        "Misconfigured",
        [
            "the SMTP server answered 535 5.7.8 Username and Password not accepted. For more information, go to"
            " https://support.google.com/mail/?p=BadCredentials 5b1f17b1804b1-4a2 - gsmtp",
            "the SMTP server answered 535 5.7.8 Username and Password not accepted. For more information, go to"
            " https://support.google.com/mail/?p=BadCredentials 9f3c17b1804b1-77d - gsmtp",
        ],
    ),
    ("authentication failed", "Misconfigured", ["the SMTP server answered 535 5.7.8 Error: authentication failed"]),
    (
        "authentication needed",
        "Misconfigured",
        ["the SMTP server answered 530 5.7.0 Must issue a STARTTLS command first"],
    ),
    (
        "server refuses connections",
        "Unavailable",
        [
            "the SMTP server at mail.example.org port 587 cannot be reached: [Errno 111] Connect call failed"
            " ('10.0.12.7', 587)",
            "the SMTP server at mail.example.org port 587 cannot be reached: [Errno 111] Connect call failed"
            " ('10.0.12.8', 587)",
        ],
    ),
    (
        "no route",
        "Unavailable",
        [
            "the SMTP server at mail.example.org port 587 cannot be reached: [Errno 113] Connect call failed"
            " ('10.0.12.7', 587)",
        ],
    ),
    (
        "throttled",
        "Throttled",
        ["the SMTP server answered 421 4.7.0 Try again later, closing connection. 17-20020a1 - gsmtp"],
    ),
    (
        "certificate expired",
        "Misconfigured",
        [
            "the certificate of the SMTP server at mail.example.org port 465 is not trusted: certificate has expired",
        ],
    ),
    (
        "mail too large",
        "InvalidPayload",
        [
            "the mail has 27262976 bytes, attachments encoded; max_message_bytes allows 26214400",
            "the mail has 30000001 bytes, attachments encoded; max_message_bytes allows 26214400",
        ],
    ),
    (
        "answer lost after the mail",
        "Ambiguous",
        [
            "the mail was sent, and the answer of the SMTP server was lost: SMTPServerDisconnected",
        ],
    ),
    ("no answer after the mail", "Ambiguous", ["the mail was sent, and the SMTP server did not answer in time"]),
    (
        "invalid mobile",
        "Permanent",
        [
            "the SMS service said: Invalid mobile number 919876543210 (202)",
            "the SMS service said: Invalid mobile number 4915112345678 (202)",
        ],
    ),
    ("mobile missing", "Permanent", ["the SMS service said: Please provide valid mobile no (101)"]),
    (
        "template not approved",
        "Misconfigured",
        [
            "the SMS service said: template 65f1c0ffee0123456789abcd is not approved (211)",
            "the SMS service said: template 65f1c0ffee0123456789dcba is not approved (211)",
        ],
    ),
    ("no balance", "Misconfigured", ["the SMS service said: insufficient balance (301)"]),
    ("address not allowed", "Misconfigured", ["the SMS service said: Unauthorized (418)"]),
    ("key not allowed", "Misconfigured", ["the SMS service said: Unauthorized (201)"]),
    ("the SMS service fails", "Transient", ["the SMS service answered HTTP 500"]),
    ("the SMS service is busy", "Transient", ["the SMS service answered HTTP 429"]),
    ("the SMS service refuses", "Permanent", ["the SMS service refused the message with HTTP 422"]),
    (
        "an API answers 404",
        "Permanent",
        [
            "Client error '404 Not Found' for url 'https://api.example.org/users/1782'"
            " For more information check: https://developer.mozilla.org/en-US/docs/Web/HTTP/Status/404",
            "Client error '404 Not Found' for url 'https://api.example.org/users/99'"
            " For more information check: https://developer.mozilla.org/en-US/docs/Web/HTTP/Status/404",
        ],
    ),
    (
        "an API refuses by its code",
        "Permanent",
        [
            'POST https://pay.example.org/v2/charges/ch_3Nq8 answered 402: {"error": "card_declined",'
            ' "request": "req_8gT2"}',
            'POST https://pay.example.org/v2/charges/ch_9Zx1 answered 402: {"error": "card_declined",'
            ' "request": "req_1aB9"}',
        ],
    ),
    (
        "an API refuses by another code",
        "Permanent",
        [
            'POST https://pay.example.org/v2/charges/ch_3Nq8 answered 402: {"error": "limit_reached",'
            ' "request": "req_8gT2"}',
        ],
    ),
    ("a key that is missing", "Crash", ["KeyError: 'amount'"]),
    ("another key", "Crash", ["KeyError: 'currency'"]),
    ("a key that is an id", "Crash", ["KeyError: 'order-1782'", "KeyError: 'order-9'"]),
    (
        "not a float",
        "Crash",
        [
            "ValueError: could not convert string to float: '12,50'",
            "ValueError: could not convert string to float: 'n/a'",
        ],
    ),
    (
        "not an int",
        "Crash",
        [
            "ValueError: invalid literal for int() with base 10: 'abc'",
            "ValueError: invalid literal for int() with base 10: '17x'",
        ],
    ),
    ("None has no such attribute", "Crash", ["AttributeError: 'NoneType' object has no attribute 'email'"]),
    ("None has no other attribute", "Crash", ["AttributeError: 'NoneType' object has no attribute 'phone'"]),
    ("an operation", "Crash", ["TypeError: unsupported operand type(s) for +: 'int' and 'str'"]),
    ("another operation", "Crash", ["TypeError: unsupported operand type(s) for +: 'int' and 'NoneType'"]),
    ("an argument", "Crash", ["TypeError: render() missing 1 required positional argument: 'locale'"]),
    ("an index", "Crash", ["IndexError: list index out of range"]),
    (
        "a file",
        "Crash",
        [
            "FileNotFoundError: [Errno 2] No such file or directory: '/data/in/2026-11-30/17.csv'",
            "FileNotFoundError: [Errno 2] No such file or directory: '/data/in/2026-12-01/2.csv'",
        ],
    ),
    ("no permission", "Crash", ["PermissionError: [Errno 13] Permission denied: '/data/in/17.csv'"]),
    ("a module", "Crash", ["ModuleNotFoundError: No module named 'pandas'"]),
    (
        "an object's address",
        "Crash",
        [
            "TypeError: Object of type Decimal is not JSON serializable: <Order object at 0x7f3a5c1d2e80>",
            "TypeError: Object of type Decimal is not JSON serializable: <Order object at 0x7f9910ab44c0>",
        ],
    ),
    (
        "JSON at a place",
        "Crash",
        [
            "JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
            "JSONDecodeError: Expecting value: line 7 column 33 (char 512)",
        ],
    ),
    (
        "bytes that are not UTF-8",
        "Crash",
        [
            "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xe9 in position 12: invalid continuation byte",
            "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xfc in position 3071: invalid continuation byte",
        ],
    ),
    (
        "a row that exists",
        "Crash",
        [
            'UniqueViolationError: duplicate key value violates unique constraint "orders_pkey"'
            " DETAIL: Key (id)=(01890a5d-ac96-774b-bcce-b302099a8057) already exists.",
            'UniqueViolationError: duplicate key value violates unique constraint "orders_pkey"'
            " DETAIL: Key (id)=(01890a5e-13f2-7d10-8a44-5d6f3c1b2a90) already exists.",
        ],
    ),
    ("a column", "Crash", ['UndefinedColumnError: column "total" does not exist']),
    (
        "cut off",
        "Ambiguous",
        [
            "it was cut off after 60 s, the timeout of its handler",
            "it was cut off after 30 s, the timeout of its handler",
        ],
    ),
    (
        "lost worker",
        "WorkerLost",
        [
            "it ended its worker while it ran alone, 3 times",
            "it ended its worker while it ran alone, 5 times",
        ],
    ),
    ("expired", "Expired", ["it was still waiting when its expiresAt passed"]),
    ("a field is missing", "InvalidPayload", ["payload.subject: is required"]),
    ("another field is missing", "InvalidPayload", ["payload.to: is required"]),
    ("an item of a list", "InvalidPayload", ["payload.to.3: is not an address", "payload.to.17: is not an address"]),
    (
        "poison: not JSON",
        "NotJson",
        [
            "the value is not JSON at character 17: Expecting ',' delimiter",
            "the value is not JSON at character 4: Expecting ',' delimiter",
        ],
    ),
    (
        "poison: too large",
        "TooLarge",
        [
            "the record has 17000000 bytes, the limit is 16777216",
            "the record has 16777300 bytes, the limit is 16777216",
        ],
    ),
    (
        "a time",
        "Permanent",
        [
            "the offer ended at 2026-11-30T23:59:59.123Z for customer 4711",
            "the offer ended at 2026-12-01 for customer 8",
        ],
    ),
    ("a list of ids", "Permanent", ["unknown orders: 17, 18, 19", "unknown orders: 4"]),
    (
        "a host over IPv6",
        "Unavailable",
        [
            "the cache cannot be reached: [2001:db8::17]:6379 refused",
            "the cache cannot be reached: [2001:db8::9]:6379 refused",
        ],
    ),
    ("words without anything to replace", "Permanent", ["no such address"]),
    ("no message", "Permanent", [""]),
)


def test_the_table_is_large_enough() -> None:
    assert sum(len(messages) for _, _, messages in CAUSES) >= 40


@pytest.mark.parametrize(("name", "error_class", "messages"), CAUSES, ids=[name for name, _, _ in CAUSES])
def test_messages_of_one_cause_have_one_fingerprint(name: str, error_class: str, messages: list[str]) -> None:
    assert len({cause_of(error_class, message) for message in messages}) == 1, [normalised(each) for each in messages]


def test_messages_of_two_causes_have_two_fingerprints() -> None:
    found = [(name, cause_of(error_class, messages[0])) for name, error_class, messages in CAUSES]
    same = [(one, other) for (one, a), (other, b) in combinations(found, 2) if a.fingerprint == b.fingerprint]
    assert same == []


@pytest.mark.parametrize(("name", "error_class", "messages"), CAUSES, ids=[name for name, _, _ in CAUSES])
def test_a_normalised_message_names_nobody(name: str, error_class: str, messages: list[str]) -> None:
    for message in messages:
        shown = cause_of(error_class, message).message
        assert not any(private in shown for private in ("ann@", "bob", "9198765", "491511", "203.0.113", "order-17"))


@pytest.mark.parametrize(
    ("message", "normal"),
    [
        (
            CAUSES[0][2][0],
            "every recipient was refused: <address>: 550 5.1.1 <address>: Recipient address rejected: User"
            " unknown in virtual mailbox table",
        ),
        (
            "the SMS service said: Invalid mobile number 919876543210 (202)",
            "the SMS service said: Invalid mobile number <n> (202)",
        ),
        (
            "see https://ann:secret@api.example.org:8443/users/17?token=abc now",
            "see https://api.example.org:8443<path> now",
        ),
        ("GET https://api.example.org/users/17 answered 404", "GET https://api.example.org<path> answered 404"),
        ("don't retry: it isn't in my list", "don't retry: it isn't in my list"),
        (
            '{"code": "E17", "message": "order 17 of \'ann\' is closed"}',
            '{"code": "<id>", "message": "order <n> of <value> is closed"}',
        ),
        ("  two\n\tlines  ", "two lines"),
        ("TLSv1 and UTF-8 stay, order-17 and 3f9c0de1 go", "TLSv1 and UTF-8 stay, <id> go"),
    ],
)
def test_what_varies_is_replaced_and_what_says_why_stays(message: str, normal: str) -> None:
    assert normalised(message) == normal


def test_a_fingerprint_is_short_names_its_version_and_is_stable() -> None:
    """Stored fingerprints are compared with new ones: whoever changes the rules raises the version, and this."""
    assert VERSION == 1
    assert cause_of("Crash", "KeyError: 'amount'").fingerprint == "1-dbeef9b80578"
    assert cause_of("Permanent", None) == cause_of("Permanent", "")


@pytest.mark.parametrize(
    "piece", ["'", '"', "a@", "1", "1.", "a-", "::", "<n>, ", '"error": "', "http://", "[1:", "0x", "\\"]
)
def test_no_message_takes_long(piece: str) -> None:
    began = time.perf_counter()
    cause = cause_of("Crash", piece * 5_000)
    assert time.perf_counter() - began < 0.5
    assert len(cause.message) <= LONGEST_MESSAGE
