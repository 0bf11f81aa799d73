from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from pydantic import TypeAdapter, ValidationError

from taskflux.providers.email import Attachment, ContentType, Email

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
        {"body": None},
        {"body": 1, "html": "<p>Hi</p>"},
        {"unknown": 1},
        {"headers": {"From": "eve@example.org"}},
        {"headers": {"bCC": "eve@example.org"}},
        {"headers": {"Content-Type": "text/html"}},
        {"headers": {"Resent-To": "x@y"}},
        {"headers": {"X-A": "a\nBcc: b@c"}},
        {"headers": {"X A": "a"}},
        {"headers": {"X-A:": "a"}},
        {"headers": {f"X-{number}": "a" for number in range(51)}},
        {"attachments": [{"filename": "a\nb", "content": ""}]},
        {"attachments": [{"filename": "a", "contentType": "zip", "content": ""}]},
        {"attachments": [{"filename": "a", "contentType": "text/plain; name=two words", "content": ""}]},
        {"attachments": [{"filename": "a", "contentType": "text/plain\n; a=b", "content": ""}]},
        {"attachments": [{"filename": "a", "contentType": "text/plain; " + "a=b; " * 200, "content": ""}]},
        {"attachments": [{"filename": "a", "content": "", "contentId": "two words"}]},
        {"attachments": [{"filename": "a", "content": "", "contentId": "<a@b"}]},
        {"attachments": [{"filename": "a", "content": "", "contentId": "lögo"}]},
        {"attachments": [{"filename": "a", "content": "", "contentId": ""}]},
        {"attachments": [{"filename": "a", "content": "", "disposition": "beside"}]},
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
        {"body": None, "html": "<p>Hi</p>"},
        {"headers": {"List-Unsubscribe": "<https://x.org/u>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}},
        {"headers": {"References": " ".join(f"<{number:032d}@mail.example.org>" for number in range(450))}},
        {"attachments": [{"filename": "Ünï.pdf", "contentType": "application/pdf", "content": "aGk=\n"}]},
        {"attachments": [{"filename": "a", "contentType": 'text/calendar;method=A; charset="utf-8";', "content": ""}]},
        {"attachments": [{"filename": "a", "contentType": "text/plain; name*=utf-8''%C3%BC; x=ü", "content": ""}]},
        {"attachments": [{"filename": "a", "content": "", "contentId": "logo", "disposition": "attachment"}]},
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


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({"References": "<a@x>", "references": "<b@x>"}, "headers has the same name twice"),
        ({"X-A": "a" * 1000}, "X-A has a word that is too long"),
        ({"References": "<ü@example.org>"}, "References has characters beyond ASCII"),
        ({"List-Id": "=?utf-8?q?a=0A?= <a.example.org>"}, "List-Id has an encoded word with a line break"),
    ],
)
def test_a_header_that_could_not_be_written_is_refused_with_a_sentence(headers: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence) as refused:
        read(headers=headers)
    assert refused.value.errors()[0]["loc"] == ("headers",)


@pytest.mark.parametrize(
    ("content_type", "sentence"),
    [
        ("multipart/mixed; boundary=x", "neither message/\\* nor multipart/\\*"),
        ("message/rfc822", "neither message/\\* nor multipart/\\*"),
        ("text/plain; charset=utf-8; Charset=ascii", "contentType names a parameter twice"),
        ("text/plain; name*=klingon''%C3", "in a character set that cannot be read"),
        ("text/plain; name*=idna''%C3", "in a character set that cannot be read"),
        ("text/plain; name*=utf-8''%0D%0ABcc:%20b@example.org", "contentType has a line break"),
    ],
)
def test_a_content_type_that_could_not_be_written_is_refused_with_a_sentence(content_type: str, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Attachment(filename="a", content_type=content_type, content=b"")


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("text/calendar", ()),
        ("text/calendar ; method=REQUEST;charset=utf-8;", (("method", "REQUEST"), ("charset", "utf-8"))),
        (r'a/b; name="a \"b\" c; d=e"', (("name", 'a "b" c; d=e'),)),
        ("a/b; name*=utf-8'de'%C3%BC%20x", (("name", "ü x"),)),
    ],
)
def test_the_parameters_of_a_content_type_are_read(text: str, parameters: tuple[tuple[str, str], ...]) -> None:
    assert ContentType.parse(text).parameters == parameters


def test_two_attachments_have_no_content_id_in_common() -> None:
    named = [{"filename": "a", "content": "", "contentId": cid} for cid in ("<logo@example.org>", "logo@example.org")]
    with pytest.raises(ValidationError, match="two of the attachments have the same contentId"):
        read(attachments=named)


@pytest.mark.parametrize("content_id", ["logo@example.org", "<logo@example.org>", "cid:logo@example.org"])
def test_a_content_id_may_be_written_as_in_the_mail_and_as_in_the_html(content_id: str) -> None:
    assert Attachment(filename="a", content=b"", content_id=content_id).cid == "logo@example.org"


@pytest.mark.parametrize(
    ("fields", "inline"),
    [
        ({}, False),
        ({"disposition": "inline"}, True),
        ({"content_id": "logo"}, True),
        ({"content_id": "logo", "disposition": "attachment"}, False),
    ],
)
def test_an_attachment_with_a_content_id_is_inline_unless_it_says_otherwise(
    fields: dict[str, Any], inline: bool
) -> None:
    assert Attachment(filename="a", content=b"", **fields).inline is inline


def test_a_mail_has_a_text_or_html() -> None:
    with pytest.raises(ValidationError, match="give body or html, or both") as refused:
        Email.model_validate_json('{"to": "nobody", "subject": "Hello"}')
    assert {error["loc"][0] for error in refused.value.errors()} == {"to", "body"}
    assert Email.model_validate_json('{"to": "ann@example.org", "subject": "Hello", "html": "<p>Hi</p>"}').body is None
    for fields, valid in (({}, False), ({"html": "<p>Hi</p>"}, True), ({"html": None}, False), ({"body": ""}, True)):
        assert SCHEMA.is_valid({"to": "ann@example.org", "subject": "Hello"} | fields) is valid


def test_fields_that_are_left_out_are_left_out_where_a_mail_is_written_again() -> None:
    """The notification service recognises a repeat by what a mail means, in this release and the next."""
    assert read(cc=[]).model_dump(mode="json", by_alias=True, exclude_defaults=True) == MAIL | {"to": [MAIL["to"]]}
