from __future__ import annotations

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
