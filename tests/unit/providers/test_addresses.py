from __future__ import annotations

import random

import jsonschema_rs
import pytest

from taskflux.providers.addresses import PATTERN, Address

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
        (" ann@example.org\t", Address("ann", "example.org")),
        ("Ann Lee < ann@example.org > ", Address("ann", "example.org", "Ann Lee")),
        ('"Ann @ Work" <ann@example.org>', Address("ann", "example.org", "Ann @ Work")),
        ('"<Ann>, \\"a\\\\b\\"" <ann@example.org>', Address("ann", "example.org", '<Ann>, "a\\b"')),
        ('"Ann @" Work <ann@example.org>', Address("ann", "example.org", "Ann @ Work")),
        ('Ann "the" Lee <ann@example.org>', Address("ann", "example.org", 'Ann "the" Lee')),
        ('Ann "Lee <ann@example.org>', Address("ann", "example.org", 'Ann "Lee')),
        ("Lee, Ann <ann@example.org>", Address("ann", "example.org", "Lee, Ann")),
        ('"ann lee"@example.org', Address('"ann lee"', "example.org")),
        ('Ann <"a@b>c"@example.org>', Address('"a@b>c"', "example.org", "Ann")),
        ('"a\\"b"@example.org', Address('"a\\"b"', "example.org")),
        ("ann..lee@example.org", Address("ann..lee", "example.org")),
        ("ann.@example.org", Address("ann.", "example.org")),
        ("ann@example.org.", Address("ann", "example.org.")),
        ("ann@my_host.example", Address("ann", "my_host.example")),
        ("ann@_x_.münchen.example", Address("ann", "_x_.münchen.example")),
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
        '"ann@example.org',
        'ann"lee"@example.org',
        '"ann\n"@example.org',
        '"Ann\u2028Lee" <ann@example.org>',
        "Ann <ann@example.org> Lee",
    ],
)
def test_plain_mistakes_are_refused_by_the_schema_already(text: str) -> None:
    assert not ADDRESS_SCHEMA.is_valid(text)
    with pytest.raises(ValueError, match=r"the @|one @"):
        Address.parse(text)


@pytest.mark.parametrize(
    "text",
    [".a@example.org", "ann@-x.org", "ann@x..org", "ann@xn--\u2764.org", f"{'a' * 65}@x.org"],
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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a@x.org; b@x.org", "write several as a list"),
        ("a@x.org, b@x.org", "write several as a list"),
        ("a@x.org,b@x.org", "write several as a list"),
        ("a@x.org b@x.org", "write several as a list"),
        ("Ann <a@x.org>; Bob <b@x.org>", "write several as a list"),
        ("mailto:ann@example.org", "without the mailto:"),
        (" MAILTO:ann@example.org?subject=x", "without the mailto:"),
        ("Ann <mailto:ann@example.org>", "without the mailto:"),
        ("< MAILTO:ann@example.org>", "without the mailto:"),
        (f"{'a' * 520} <ann@example.org>", "at most 530 characters"),
        ("ann@example.org..", "not a domain name"),
        ("ann@.", "not a domain name"),
        ("ann@", "not a domain name"),
        ("ann@exa-.org", "not a domain name"),
        (5, "is a text"),
    ],
)
def test_a_common_mistake_has_a_sentence_of_its_own(text: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Address.parse(text)


@pytest.mark.parametrize(
    ("text", "envelope"),
    [
        ("ann@example.org.", "ann@example.org"),
        ("ann@My_Host.Example", "ann@my_host.example"),
        ("ann@my_host.bücher.example", "ann@my_host.xn--bcher-kva.example"),
        ("ann@bücher。example。", "ann@xn--bcher-kva.example"),
        ("ann..lee@example.org", "ann..lee@example.org"),
        ('"ann lee"@Example.org', '"ann lee"@example.org'),
    ],
)
def test_a_server_gets_the_form_that_it_accepts(text: str, envelope: str) -> None:
    assert Address.parse(text).envelope == envelope
    assert Address.parse(str(Address.parse(text))) == Address.parse(text)


def test_the_schema_accepts_whatever_is_read() -> None:
    chance = random.Random(7)
    read = 0
    for _ in range(20_000):
        name, local, domain = ("".join(chance.choices(_PIECES, k=chance.randrange(4))) for _ in range(3))
        text = f"{name}<{local}@{domain}>" if chance.random() < 0.5 else f"{local}@{domain}"
        try:
            address = Address.parse(text)
        except ValueError:
            continue
        read += 1
        assert ADDRESS_SCHEMA.is_valid(text), text
        assert Address.parse(str(address)) == address
    assert read > 200


def test_no_text_takes_long_to_refuse() -> None:
    for text in ('"' * 529, '"\\' * 264, "<" * 529, '"a"' * 176, "a." * 264, "a@" * 264):
        with pytest.raises(ValueError, match="@"):
            Address.parse(text)
        assert not ADDRESS_SCHEMA.is_valid(text)


_PIECES = ["ann", "@", "example.org", '"', "\\", " ", "<", ">", ".", ",", ";", "ü", "_", '"a b"', "mailto:", "\t", "x"]
