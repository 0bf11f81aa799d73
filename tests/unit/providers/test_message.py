from __future__ import annotations

import base64
from datetime import UTC, datetime
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import EmailMessage, MIMEPart
from email.policy import compat32, default
from email.utils import getaddresses
from typing import Any

import pytest
from pydantic import ValidationError

from taskflux.providers.addresses import Address
from taskflux.providers.email import Attachment, Email
from taskflux.providers.message import Message, compose
from taskflux.tasks.errors import Permanent

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
    mail = parsed(
        compose(Email(to="ann@example.org", subject="Hello", body="Hi"), sender=sender, unique="0199-7.1", date=DATE)
    )
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
        ({"subject": "a", "to": [Address("ann", "example.org", "half an emoji: \ud83d")]}, "To"),
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


@pytest.mark.parametrize("value", ["", "  "])
def test_a_structured_header_without_a_value_is_left_out(value: str) -> None:
    assert "References" not in parsed(written(headers={"References": value}))


def test_long_lists_of_recipients_are_folded_between_addresses_and_names_are_kept() -> None:
    names = ["Jörg Müller-Lüdenscheidt von und zu Überlingen am Bodensee", "Bob", "", "日本 太郎", "x" * 520]
    message = written(to=[Address(f"r{at}", "example.org", name) for at, name in enumerate(names)])
    to = message_from_bytes(message.wire, policy=compat32)["To"].replace("\r\n", "")
    assert [str(make_header(decode_header(name))) for name, _ in getaddresses([to])] == names
    head = message.wire.split(b"\r\n\r\n")[0].split(b"\r\n")
    assert all(line.strip() and len(line) <= 78 for line in head)


@pytest.mark.parametrize("length", [900, 985, 990, 991, 992, 993, 994, 995, 1200, 1999])
@pytest.mark.parametrize("shape", ["{}", "a {}", "{} a", "ü{}", "=?{}", "a  {}"])
def test_what_the_model_accepts_can_be_written(length: int, shape: str) -> None:
    value = shape.format("x" * length)
    for fields in ({"headers": {"X-A": value}}, {"subject": value}):
        try:
            email = Email.model_validate({"to": "ann@example.org", "subject": "x", "body": "b"} | fields)
        except ValidationError:
            assert length > 985
            continue
        compose(email, sender=SENDER, unique="1", date=DATE)


def test_names_and_quoted_local_parts_are_written_in_quotation_marks() -> None:
    mail = parsed(written(to=['"Ann @ Work, <x>" <ann@example.org>', '"ann lee"@example.org']))
    first, second = mail["To"].addresses
    assert (first.display_name, first.addr_spec) == ("Ann @ Work, <x>", "ann@example.org")
    assert (second.username, second.domain) == ("ann lee", "example.org")


def test_two_dots_before_the_at_are_sent_as_they_are() -> None:
    assert b"To: ann..lee@example.org\r\n" in written(to="ann..lee@example.org").wire


def shape(part: MIMEPart) -> Any:
    """The tree of a mail: each part by its type."""
    if not part.is_multipart():
        return part.get_content_type()
    return {part.get_content_subtype(): [shape(each) for each in part.iter_parts()]}


PNG = {"filename": "l.png", "content_type": "image/png", "content": b"\x89PNG"}
PDF = {"filename": "a.pdf", "content_type": "application/pdf", "content": b"%PDF"}


def test_what_the_html_shows_is_related_to_it_and_the_rest_beside_the_mail() -> None:
    mail = parsed(
        written(
            html='<img src="cid:logo@example.org"><img src="cid:two">',
            attachments=[
                Attachment(**PDF),
                Attachment(**PNG, content_id="logo@example.org"),
                Attachment(**PNG, content_id="<two>"),
                Attachment(**PDF, content_id="terms", disposition="attachment"),
                Attachment(**PNG, disposition="inline"),
            ],
        )
    )
    related = {"related": ["text/html", "image/png", "image/png"]}
    assert shape(mail) == {
        "mixed": [{"alternative": ["text/plain", related]}, "application/pdf", "application/pdf", "image/png"]
    }
    leaves = [part for part in mail.walk() if part.get_filename()]
    assert [part["Content-ID"] for part in leaves] == ["<logo@example.org>", "<two>", None, "<terms>", None]
    kinds = ["inline", "inline", "attachment", "attachment", "inline"]
    assert [part.get_content_disposition() for part in leaves] == kinds
    assert [part.get_content() for part in leaves] == [b"\x89PNG", b"\x89PNG", b"%PDF", b"%PDF", b"\x89PNG"]
    [tree] = [part for part in mail.walk() if part.get_content_subtype() == "related"]
    assert tree.get_param("type") == "text/html"


def test_an_inline_attachment_of_a_mail_without_html_is_beside_its_text() -> None:
    mail = parsed(written(attachments=[Attachment(**PNG, content_id="logo")]))
    assert shape(mail) == {"mixed": ["text/plain", "image/png"]}


def test_an_attachment_s_content_type_keeps_its_parameters() -> None:
    content_type = "text/calendar; method=REQUEST; charset=utf-8; name=Grüße.ics"
    message = written(attachments=[Attachment(filename="invite.ics", content_type=content_type, content=b"BEGIN")])
    assert b"Content-Type: text/calendar; method=REQUEST; charset=utf-8;\r\n name*=utf-8''Gr" in message.wire
    [_, invitation] = parsed(message).iter_parts()
    assert invitation["Content-Type"].params == {"method": "REQUEST", "charset": "utf-8", "name": "Grüße.ics"}


@pytest.mark.parametrize("content", [b"", b"\n", b"a" * 57, b"\r\n.\r\n", b"--=_\r\n", bytes(range(256)) * 300])
def test_a_file_arrives_as_it_was_given(content: bytes) -> None:
    mail = parsed(written(html="<p>hi</p>\n", attachments=[Attachment(filename="a", content=content)]))
    [_, html, file] = [part for part in mail.walk() if not part.is_multipart()]
    assert html.get_content() == "<p>hi</p>\r\n"
    assert file.get_content() == content


def test_a_mail_of_html_alone_gets_a_text_of_its_own() -> None:
    mail = parsed(written(body=None, html='<h1>Grüße</h1><p>from <a href="https://example.org">here</a></p>'))
    assert shape(mail) == {"alternative": ["text/plain", "text/html"]}
    [text, _] = mail.iter_parts()
    assert text.get_content() == "Grüße\r\n\r\nfrom here <https://example.org>\r\n"


@pytest.mark.parametrize("html", ["", "<p></p>", "<img src='cid:logo'>"])
def test_html_without_any_text_is_sent_alone(html: str) -> None:
    assert shape(parsed(written(body=None, html=html))) == "text/html"
    mail = parsed(written(body=None, html=html, attachments=[Attachment(**PNG, content_id="logo")]))
    assert shape(mail) == {"related": ["text/html", "image/png"]}


def test_a_text_that_is_given_is_never_replaced() -> None:
    mail = parsed(written(body="", html="<p>hi</p>"))
    assert shape(mail) == {"alternative": ["text/plain", "text/html"]}
    assert next(iter(mail.iter_parts())).get_content().strip() == ""
