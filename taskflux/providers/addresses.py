"""Mail addresses: how they are read, and what an SMTP server is told. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

import idna
from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema

MAX_RECIPIENTS: Final = 500
"""Recipients of one mail, to, cc and bcc together."""

_PART: Final = r'[^\s@<>()\[\],;:\\"\x00-\x1f\x7f]'
_SPEC: Final = rf"{_PART}+@{_PART}+"
_NAME: Final = r"[^@<>\x00-\x1f\x7f]*"

PATTERN: Final = rf"^(?:{_SPEC}|{_NAME}<{_SPEC}>)$"
"""What a JSON schema can say of a mailbox: one @, no control character, an optional display name before <…>."""

# RFC 5322 dot-atom, widened by RFC 6531 to anything beyond ASCII that is neither a control nor a space.
_ATOM: Final = r"(?:[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]|[^\x00-\x9f\s])+"
_LOCAL: Final = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_DOMAIN: Final = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_NAMED: Final = re.compile(rf"({_NAME})<([^<>]*)>")


@dataclass(frozen=True, slots=True)
class Address:
    """One mailbox. `domain` is as it was written; `envelope` is what an SMTP server is told."""

    local: str
    domain: str
    name: str = ""

    @classmethod
    def parse(cls, text: object) -> Address:
        """Read `ann@example.org` or `Ann Lee <ann@example.org>`; an address stays as it is.

        Raises:
            ValueError: a sentence on what is wrong; it does not repeat the address.
        """
        if isinstance(text, Address):
            return text
        if not isinstance(text, str):
            raise ValueError("an address is a text, such as ann@example.org")
        named = _NAMED.fullmatch(text.strip())
        name, spec = (_unquoted(named[1].strip()), named[2].strip()) if named else ("", text.strip())
        local, at, domain = spec.rpartition("@")
        if not at or "@" in local:
            raise ValueError("an address has one @, such as ann@example.org")
        if not _LOCAL.fullmatch(local) or len(local.encode()) > 64:
            raise ValueError("the part before the @ has a character that an address cannot have, or is too long")
        _ascii_domain(domain)
        return cls(local, domain, name)

    @property
    def spec(self) -> str:
        """`local@domain`, as it was written."""
        return f"{self.local}@{self.domain}"

    @property
    def envelope(self) -> str:
        """`local@domain` with the domain in ASCII (IDNA 2008)."""
        return f"{self.local}@{_ascii_domain(self.domain)}"

    @property
    def needs_utf8(self) -> bool:
        """Whether only a server with SMTPUTF8 (RFC 6531) can be told this address."""
        return not self.local.isascii()

    def __str__(self) -> str:
        if not self.name:
            return self.spec
        quoted = self.name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}" <{self.spec}>'


def _unquoted(name: str) -> str:
    if len(name) >= 2 and name[0] == name[-1] == '"':
        return re.sub(r"\\(.)", r"\1", name[1:-1])
    return name


def _ascii_domain(domain: str) -> str:
    try:
        ascii_domain = domain.lower() if domain.isascii() else idna.encode(domain, uts46=True).decode("ascii")
    except idna.IDNAError:
        raise ValueError("the part after the @ is no domain name that can be written in ASCII (IDNA)") from None
    if len(ascii_domain) > 253 or not _DOMAIN.fullmatch(ascii_domain):
        raise ValueError("the part after the @ is not a domain name")
    return ascii_domain


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str | Address) else value


_SCHEMA: Final[dict[str, Any]] = {"type": "string", "maxLength": 530, "pattern": PATTERN}


def _one_or(least: int) -> WithJsonSchema:
    many = {"type": "array", "items": _SCHEMA, "minItems": least, "maxItems": MAX_RECIPIENTS}
    return WithJsonSchema({"anyOf": [_SCHEMA, many]})


Mailbox = Annotated[Address, PlainValidator(Address.parse), PlainSerializer(str), WithJsonSchema(_SCHEMA)]
"""A field that is given as a text and read as an `Address`."""

Mailboxes = Annotated[list[Mailbox], BeforeValidator(_several), Field(max_length=MAX_RECIPIENTS), _one_or(0)]
"""A field that takes one address or a list of them."""

Recipients = Annotated[
    list[Mailbox], BeforeValidator(_several), Field(min_length=1, max_length=MAX_RECIPIENTS), _one_or(1)
]
"""The same, and at least one."""
