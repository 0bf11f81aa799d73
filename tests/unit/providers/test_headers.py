from __future__ import annotations

import time
from contextlib import suppress
from email import message_from_string
from email.policy import default

import pytest

from taskflux.providers.headers import LONGEST_LINE, LONGEST_VALUE, WrongHeader, encoded_words, field, mime_field


def lines(name: str, value: str) -> list[str]:
    return field(name, value).split("\r\n")


def unfolded(name: str, value: str) -> str:
    """The value as RFC 5322 unfolds it: line ends go, spaces stay."""
    return "".join(lines(name, value)).removeprefix(f"{name}: ")


def shown(name: str, value: str) -> str:
    """The value as a reader shows it."""
    return str(message_from_string(field(name, value) + "\r\n\r\n", policy=default)[name])


THREAD = " ".join(f"<{number:032d}@mail.example.org>" for number in range(450))
URLS = [f"<https://example.org/{each * 400},1>" for each in "abc"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("List-Unsubscribe", "<mailto:u@example.org>,  <https://example.org/u>"),
        ("List-Unsubscribe", "<https://example.org/?a=?q?b?=>"),
        ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
        ("List-Id", "All   news  <news.example.org>"),
        ("In-Reply-To", "<a@example.org>   <b@example.org>"),
        ("References", THREAD),
        ("Auto-Submitted", "auto-replied;   owner-email=ann@example.org"),
        ("Precedence", "bulk"),
        ("X-Unknown", "{'a':  1,   'b': '<https://example.org/?a=?b>'}"),
        ("Subject", "Two  spaces,   three"),
    ],
)
def test_ascii_is_sent_as_it_is_however_many_spaces_it_has(name: str, value: str) -> None:
    assert unfolded(name, value) == value


@pytest.mark.parametrize("name", ["List-Unsubscribe", "List-Id", "X-Token", "X-" + "N" * 74])
@pytest.mark.parametrize("value", ["a" * 900, "a" * 900 + " b", "b  " + "a" * 990, "a " * 400 + "a", "ü" * 100])
def test_no_line_is_empty_and_none_is_too_long(name: str, value: str) -> None:
    written = lines(name, value)
    assert written[0].startswith(f"{name}: ")
    assert written[0] != f"{name}: "
    assert all(line.strip() and len(line) <= LONGEST_LINE for line in written)
    assert all(line.startswith(" ") for line in written[1:])
    assert "".join(written).isascii()


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("References", THREAD.replace(" ", ""), THREAD),
        ("List-Unsubscribe", ",".join(URLS), ", ".join(URLS)),
        ("In-Reply-To", f"<a@example.org>{' ' * 2000}<b@example.org>", "<a@example.org> <b@example.org>"),
    ],
)
def test_what_is_too_long_for_a_line_is_folded_between_its_brackets(name: str, value: str, written: str) -> None:
    assert unfolded(name, value) == written
    assert all(line.strip() and len(line) <= LONGEST_LINE for line in lines(name, value))


@pytest.mark.parametrize("value", ["welcome ", " welcome", "  welcome  "])
def test_spaces_around_a_value_do_not_have_it_encoded(value: str) -> None:
    assert unfolded("X-Mailgun-Tag", value) == "welcome"


def test_a_value_of_many_lines_is_folded_between_its_words() -> None:
    value = " ".join(["a" * 900] * (LONGEST_VALUE // 901))
    assert unfolded("X-Long", value) == value
    assert len(lines("X-Long", value)) == LONGEST_VALUE // 901


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("References", f"<{'a' * 1000}@example.org>"),
        ("X-Token", "a" * 994),
        ("X-Token", "a " + "a" * 998),
        ("References", "<ü@example.org>"),
        ("Precedence", "bülk"),
        ("List-Id", "News <ü.example.org>"),
        ("X-A", "a\nBcc: b@example.org"),
        ("X-A", "half an emoji: \ud83d"),
        ("X A", "a"),
        ("References", "<=?utf-8?q?a=0ABcc:_b@example.org?=>"),
        ("List-Id", "=?utf-8?b?YQ0KQmNjOiBiQGV4YW1wbGUub3Jn?= <a.example.org>"),
    ],
)
def test_what_cannot_stand_in_a_header_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(WrongHeader, match=f"^{name} has"):
        field(name, value)


@pytest.mark.parametrize("part", ['\\"', '"\\"', '\\"<', '"\\\\"', '\\\\"', "(", "<", "=?a?q?", ',"\\', '<\\>"'])
def test_no_value_takes_long_to_write(part: str) -> None:
    began = time.process_time()
    for value in (part * (LONGEST_VALUE // len(part) - 1) + "ü", "ü" + part * (LONGEST_VALUE // len(part) - 1)):
        with suppress(WrongHeader):
            field("List-Id", value)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "subject",
    ["日本語" * 300, "😀" * 200, "Grüße  aus   Köln", " outer spaces ", "=?utf-8?q?not_encoded?=", "a" * 998, ""],
)
def test_a_subject_reads_as_it_was_given(subject: str) -> None:
    assert shown("Subject", subject) == subject
    assert all(len(line) <= 76 for line in lines("Subject", subject))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("List-Id", "Ünï News <news.example.org>", "Ünï News <news.example.org>"),
        ("List-Id", '"Öl, Gas" (täglich) <oil.example.org>', "Öl, Gas (täglich) <oil.example.org>"),
        ("Keywords", "öl, gas, Käse  brot", "öl, gas, Käse  brot"),
        ("Disposition-Notification-To", "Jörg Lee <joerg@example.org>", "Jörg Lee <joerg@example.org>"),
        ("Auto-Submitted", "auto-generated (Grüße)", "auto-generated (Grüße)"),
    ],
)
def test_of_a_structured_field_only_names_and_comments_are_encoded(name: str, value: str, text: str) -> None:
    assert shown(name, value) == text
    assert field(name, value).isascii()
    assert all("=?" not in part for part in field(name, value).split("<")[1:])


def test_an_address_of_the_web_beyond_ascii_is_percent_encoded() -> None:
    given = "<https://bücher.example/ü?q=%20ä>,  <mailto:u@example.org?subject=Grüße>"
    assert unfolded("List-Unsubscribe", given) == (
        "<https://b%C3%BCcher.example/%C3%BC?q=%20%C3%A4>,  <mailto:u@example.org?subject=Gr%C3%BC%C3%9Fe>"
    )


def test_an_encoded_word_has_at_most_75_characters_and_whole_characters() -> None:
    for text in ("日本語" * 50, "ü" * 100, "Grüße und mehr als das " * 9, "a" + "😀" * 40):
        words = encoded_words(text, 12)
        assert all(len(word.strip()) <= 75 for word in words)
        assert all("\ufffd" not in str(message_from_string(f"X-A:{word}\n\n", policy=default)["X-A"]) for word in words)
        assert str(message_from_string(f"X-A: {''.join(words)}\r\n\r\n", policy=default)["X-A"]) == text


@pytest.mark.parametrize(
    "value",
    [
        "REQUEST",
        "two words",
        'a "quoted" \\ one; x=y',
        "Grüße.pdf",
        "ann's.pdf",
        "a*b*0*.pdf",
        "100%25.pdf",
        "日本語" * 60 + ".pdf",
        "=?utf-8?q?a?=",
        "a" * 800,
        "",
    ],
)
def test_a_parameter_reads_as_it_was_given(value: str) -> None:
    written = mime_field("Content-Type", "text/calendar", [("method", "REQUEST"), ("name", value)])
    parameters = message_from_string(f"{written}\r\n\r\n", policy=default)["Content-Type"].params
    assert parameters == {"method": "REQUEST", "name": value}
    assert written.isascii()
    assert all(line.strip() for line in written.split("\r\n"))


def test_a_plain_parameter_is_written_plainly() -> None:
    given = [("method", "REQUEST"), ("charset", "utf-8")]
    assert mime_field("Content-Type", "text/calendar", given) == (
        "Content-Type: text/calendar; method=REQUEST; charset=utf-8"
    )
