from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

import jsonschema_rs
import pytest
from pydantic import TypeAdapter, ValidationError

from taskflux.providers.email import PATTERN, Address, Attachment, Email, Message, compose
from taskflux.tasks.errors import Permanent

ADDRESS_SCHEMA = jsonschema_rs.validator_for({"type": "string", "pattern": PATTERN})


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ann@example.org", Address("ann", "example.org")),
        ("root@localhost", Address("root", "localhost")),
        ("ann+tag.x@sub.example.org", Address("ann+tag.x", "sub.example.org")),
        ("Ann Lee <ann@example.org>", Address("ann", "example.org", "Ann Lee")),
        ('"Lee, \\"Ann\\"" <ann@example.org>', Address("ann", "example.org", 'Lee, "Ann"')),
        ("jörg@münchen.example", Address("jörg", "münchen.example")),
    ],
)
def test_an_address_is_read_with_and_without_a_display_name(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert ADDRESS_SCHEMA.is_valid(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ann",
        "ann@",
        "@example.org",
        "a@b@c",
        "ann@exa mple.org",
        "ann lee@example.org",
        "ann@example.org\r\nRCPT TO:<x@y>",
        "Ann\nBcc: x@y <ann@example.org>",
        "ann@example.org>",
        "<ann@example.org",
        "ann@<example.org>",
    ],
)
def test_plain_mistakes_are_refused_by_the_schema_already(text: str) -> None:
    assert not ADDRESS_SCHEMA.is_valid(text)
    with pytest.raises(ValueError, match=r"the @|one @"):
        Address.parse(text)


@pytest.mark.parametrize(
    "text",
    ["a..b@example.org", ".a@example.org", "ann@-x.org", "ann@x..org", "ann@xn--\u2764.org", f"{'a' * 65}@x.org"],
)
def test_what_the_schema_cannot_see_is_refused_when_it_is_read(text: str) -> None:
    with pytest.raises(ValueError, match="@"):
        Address.parse(text)


def test_the_envelope_has_the_domain_in_ascii() -> None:
    address = Address.parse("Zoë <zoe@Bücher.Example>")
    assert address.envelope == "zoe@xn--bcher-kva.example"
    assert address.spec == "zoe@Bücher.Example"
    assert not address.needs_utf8


def test_only_a_local_part_beyond_ascii_needs_smtputf8() -> None:
    assert Address.parse("jörg@example.org").needs_utf8


def test_a_written_address_reads_back_as_itself() -> None:
    address = Address("ann", "example.org", 'Lee, "Ann" \\o/')
    assert Address.parse(str(address)) == address


MAIL: dict[str, Any] = {"to": "ann@example.org", "subject": "Hello", "body": "Hi"}
SCHEMA = jsonschema_rs.validator_for(TypeAdapter(Email).json_schema(by_alias=True))


def read(**fields: Any) -> Email:
    return Email.model_validate_json(json.dumps(MAIL | fields))


def test_one_recipient_may_be_given_without_a_list() -> None:
    assert [address.spec for address in read().to] == ["ann@example.org"]


def test_a_recipient_named_twice_gets_one_mail() -> None:
    mail = read(to=["ann@example.org", "bob@example.org"], cc="Ann <ann@EXAMPLE.org>", bcc=["eve@example.org"])
    assert [address.envelope for address in mail.recipients] == [
        "ann@example.org",
        "bob@example.org",
        "eve@example.org",
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"to": []},
        {"to": "nobody"},
        {"cc": ["a@b@c"]},
        {"replyTo": "x@y\r\nBcc: z@z"},
        {"subject": "two\r\nBcc: x@example.org"},
        {"subject": "two\u2028lines"},
        {"body": "nul \0 byte"},
        {"unknown": 1},
        {"headers": {"From": "eve@example.org"}},
        {"headers": {"bCC": "eve@example.org"}},
        {"headers": {"Content-Type": "text/html"}},
        {"headers": {"Resent-To": "x@y"}},
        {"headers": {"X-A": "a\nBcc: b@c"}},
        {"headers": {"X A": "a"}},
        {"headers": {"X-A:": "a"}},
        {"attachments": [{"filename": "a\nb", "content": ""}]},
        {"attachments": [{"filename": "a", "contentType": "zip", "content": ""}]},
    ],
)
def test_what_cannot_be_sent_is_refused_by_schema_and_model_alike(fields: dict[str, Any]) -> None:
    assert not SCHEMA.is_valid(MAIL | fields)
    with pytest.raises(ValidationError):
        read(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"to": ["ann@example.org", "Bob <bob@example.org>"], "cc": "c@d", "bcc": [], "html": "<p>Hi</p>"},
        {"headers": {"List-Unsubscribe": "<https://x.org/u>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}},
        {"attachments": [{"filename": "Ünï.pdf", "contentType": "application/pdf", "content": "aGk=\n"}]},
    ],
)
def test_what_can_be_sent_passes_schema_and_model_alike(fields: dict[str, Any]) -> None:
    assert SCHEMA.is_valid(MAIL | fields)
    read(**fields)


def test_an_attachment_is_decoded_and_garbage_refused() -> None:
    assert Attachment(filename="a", content="aG k=").content == b"hi"
    with pytest.raises(ValidationError, match="content is not base64"):
        Attachment(filename="a", content="aGk")


def test_an_encoded_word_in_a_file_name_is_refused() -> None:
    with pytest.raises(ValidationError, match="filename may not contain"):
        Attachment(filename="=?utf-8?q?a=0ABcc:_x@y?=", content="")


def test_more_recipients_than_one_mail_may_have_are_refused() -> None:
    many = [f"r{number}@example.org" for number in range(300)]
    with pytest.raises(ValidationError, match="more than 500 recipients"):
        read(to=many, bcc=[f"b{address}" for address in many])


DATE = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
SENDER = Address.parse("TaskFlux <tasks@example.org>")


def written(**fields: Any) -> Message:
    fields = {"to": "ann@example.org", "subject": "Hello", "body": "Hi"} | fields
    return compose(Email(**fields), sender=SENDER, unique="0199-7.1", date=DATE)


def parsed(message: Message) -> EmailMessage:
    assert message.wire.endswith(b"\r\n.\r\n")
    data = message.wire[:-3].replace(b"\r\n..", b"\r\n.")
    assert len(data) == message.size
    return message_from_bytes(data, policy=default)


def test_message_id_and_date_come_from_the_task() -> None:
    mail = parsed(written())
    assert mail["Message-ID"] == "<0199-7.1@example.org>"
    assert mail["Date"].datetime == DATE
    assert mail["From"] == "TaskFlux <tasks@example.org>"


def test_text_comes_first_then_html_then_attachments() -> None:
    mail = parsed(
        written(
            html="<p>Grüße</p>",
            attachments=[
                Attachment(
                    filename="Ünï.pdf", content_type="application/pdf", content=base64.b64encode(b"%PDF").decode()
                )
            ],
        )
    )
    leaves = [part for part in mail.walk() if not part.is_multipart()]
    assert [part.get_content_type() for part in leaves] == ["text/plain", "text/html", "application/pdf"]
    assert leaves[1].get_content() == "<p>Grüße</p>\r\n"
    assert leaves[2].get_filename() == "Ünï.pdf"
    assert leaves[2].get_content() == b"%PDF"


@pytest.mark.parametrize("name", ['Ann "Lee"', "Lee, Ann", '"', "\\", 'Ann" <eve@example.net>, "Bob', "Ann\\"])
def test_a_display_name_is_quoted_so_that_it_stays_one(name: str) -> None:
    sender = Address("tasks", "example.org", name)
    mail = parsed(compose(read(), sender=sender, unique="0199-7.1", date=DATE))
    (address,) = mail["From"].addresses
    assert (address.display_name, address.addr_spec) == (name, "tasks@example.org")


def test_bcc_is_never_a_header() -> None:
    message = written(bcc="secret@example.org")
    assert b"secret" not in message.wire
    assert b"bcc" not in message.wire.lower()


def test_a_subject_beyond_ascii_is_encoded_in_words_of_at_most_75_characters() -> None:
    subject = "Überraschung: 日本語の件名です " * 8
    message = written(subject=subject)
    assert parsed(message)["Subject"].split() == subject.split()
    assert all(len(line) <= 78 for line in message.wire.split(b"\r\n"))


@pytest.mark.parametrize(
    "fields",
    [
        {"subject": "=?utf-8?q?a=0D=0ABcc:_evil@example.org?="},
        {"headers": {"X-A": "=?utf-8?q?a=0ABcc:_evil@example.org?="}},
        {"to": "=?utf-8?q?a=0D=0ABcc=3A_evil?= <ann@example.org>"},
    ],
)
def test_an_encoded_word_cannot_smuggle_in_a_header(fields: dict[str, Any]) -> None:
    message = written(**fields)
    assert "Bcc" not in parsed(message)
    assert b"\nBcc" not in message.wire


def test_a_subject_that_looks_encoded_is_shown_as_it_was_given() -> None:
    subject = "=?utf-8?q?a=0D=0ABcc:_evil@example.org?="
    assert parsed(written(subject=subject))["Subject"] == subject


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"subject": "a\r\nBcc: x@y"}, "Subject"),
        ({"subject": "a", "headers": {"X-A": "a\nBcc: x@y"}}, "X-A"),
        ({"subject": "a", "to": [Address("ann", "example.org", "A\nBcc: x@y")]}, "To"),
        ({"subject": "a", "headers": {"X-A": "a" * 1100}}, "X-A"),
    ],
)
def test_a_line_break_that_got_past_the_model_is_permanent_and_names_the_field(
    fields: dict[str, Any], named: str
) -> None:
    values = {"to": [Address("ann", "example.org")], "body": "Hi", "headers": {}, "attachments": []} | fields
    email = Email.model_construct(**values)
    with pytest.raises(Permanent, match=f"^{named} has"):
        compose(email, sender=SENDER, unique="1", date=DATE)


def test_a_long_unsubscribe_url_stays_whole() -> None:
    url = "<https://example.org/unsubscribe/" + "a" * 300 + ">"
    assert url.encode() in written(headers={"List-Unsubscribe": f"{url}, <mailto:u@example.org>"}).wire


def test_lines_that_begin_with_a_dot_are_stuffed_and_lone_line_ends_made_whole() -> None:
    message = written(body=".first\n..second\rthird\n.")
    assert b"\r\n..first\r\n...second\r\nthird\r\n..\r\n" in message.wire
    assert b"\n" not in message.wire.replace(b"\r\n", b"")
    assert parsed(message).get_content() == ".first\r\n..second\r\nthird\r\n.\r\n"


def test_everything_but_the_addresses_is_seven_bits() -> None:
    assert written(body="Grüße", html="<b>ü</b>", subject="ü", to="Zoë <zoe@bücher.example>").wire.isascii()


def test_a_local_part_beyond_ascii_is_written_as_it_is() -> None:
    message = written(to="jörg@bücher.example")
    assert message.encoding == "utf-8"
    assert "To: jörg@xn--bcher-kva.example".encode() in message.wire


def test_an_empty_header_and_an_empty_body_are_allowed() -> None:
    mail = parsed(written(subject="", body="", headers={"X-Empty": ""}))
    assert mail["Subject"] == ""
    assert mail["X-Empty"] == ""
