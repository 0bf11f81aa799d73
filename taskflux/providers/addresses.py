"""Mail addresses: how they are parsed, and what is sent to an SMTP server. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import quote
from functools import lru_cache
from typing import Annotated, Any, Final

import idna
from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema

from taskflux.tasks.fields import said_as

MAX_RECIPIENTS: Final = 500
"""Recipients of one mail, to, cc and bcc together."""

LONGEST: Final = 530
"""Characters of an address with its display name."""

_CONTROL: Final = r"\x00-\x1f\x7f" + "\x85\u2028\u2029"
_PART: Final = r'[^\s@<>()\[\],;:\\"\x00-\x1f\x7f]'
_QUOTED: Final = rf'"(?:[^"\\{_CONTROL}]|\\[^{_CONTROL}])*"'
_SPEC: Final = rf"(?:{_PART}+|{_QUOTED})@{_PART}+"
# A quotation mark that is not closed is a plain character: such names have always been accepted.
_NAME: Final = rf'(?:{_QUOTED}|[^"@<>{_CONTROL}])*'
_PLAIN_NAME: Final = rf"[^@<>{_CONTROL}]*"
_SPACE: Final = r"\s*"

PATTERN: Final = said_as(
    rf"^{_SPACE}(?:{_SPEC}|(?:{_NAME}|{_PLAIN_NAME})<{_SPACE}{_SPEC}{_SPACE}>){_SPACE}$",
    "is not an address, such as ann@example.org or Ann Lee <ann@example.org>",
)
"""What a JSON schema can check of a mailbox: one @ outside quotation marks, no control character, a name before <…>."""

_MAILTO: Final = re.compile(r"(?:[^@]*<)?\s*mailto:", re.IGNORECASE)

# Dots may be anywhere but in front: `ann..lee@` and `ann.@` are in use, though RFC 5322 does not allow them. Beyond
# ASCII, RFC 6531 allows anything that is neither a control character nor a space.
_LOCAL: Final = re.compile(
    r"(?:[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]|[^\x00-\x9f\s])(?:[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]|[^\x00-\x9f\s])*"
)
_QUOTED_LOCAL: Final = re.compile(rf"({_QUOTED})@(.*)", re.DOTALL)
_NAMED: Final = re.compile(rf"({_NAME})<([^<>]*)>")
_PLAINLY_NAMED: Final = re.compile(rf"({_PLAIN_NAME})<([^<>]*)>")
_NAMED_QUOTED: Final = re.compile(rf"({_NAME})<{_SPACE}({_QUOTED}@[^<>]*)>")
_QUOTATION: Final = re.compile(_QUOTED)
_FORBIDDEN: Final = re.compile(f"[{_CONTROL}]")
_LABEL: Final = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DOMAIN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_USUAL: Final = re.compile(r"([A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*)@([a-z0-9-]+(?:\.[a-z0-9-]+)+)")
"""Matches most addresses, which need only a check of the domain besides."""


@dataclass(frozen=True, slots=True)
class Address:
    """One mailbox. `local` and `domain` are as written; `envelope` is what is sent to an SMTP server."""

    local: str
    domain: str
    name: str = ""

    @classmethod
    def parse(cls, text: object) -> Address:
        """Read `ann@example.org` or `Ann Lee <ann@example.org>`; an Address is returned unchanged.

        Raises:
            ValueError: a sentence on what is wrong; it does not repeat the address.
        """
        if isinstance(text, Address):
            return text
        if not isinstance(text, str):
            raise ValueError("an address is a text, such as ann@example.org")
        usual = _USUAL.fullmatch(text)
        if usual is not None and len(usual[1]) <= 64:
            _ascii_domain(usual[2])
            return cls(usual[1], usual[2])
        _refuse_mistakes(text)
        text = text.strip()
        named = _NAMED_QUOTED.fullmatch(text) or _NAMED.fullmatch(text) or _PLAINLY_NAMED.fullmatch(text)
        name, spec = (_unquoted(named[1].strip()), named[2].strip()) if named else ("", text)
        return cls(*_local_and_domain(spec), name)

    @property
    def spec(self) -> str:
        """`local@domain`, as it was written."""
        return f"{self.local}@{self.domain}"

    @property
    def envelope(self) -> str:
        """`local@domain` with the domain in ASCII (IDNA 2008), and without the dot that ends it."""
        return f"{self.local}@{_ascii_domain(self.domain)}"

    @property
    def quoted(self) -> bool:
        """Whether the part before the @ is a quoted string (RFC 5321, 4.1.2)."""
        return self.local.startswith('"')

    @property
    def needs_utf8(self) -> bool:
        """Whether this address requires a server with SMTPUTF8 (RFC 6531)."""
        return not self.local.isascii()

    def __str__(self) -> str:
        if not self.name:
            return self.spec
        return f'"{quote(self.name)}" <{self.spec}>'


def _refuse_mistakes(text: str) -> None:
    """Common mistakes get a sentence of their own."""
    if len(text) > LONGEST:
        raise ValueError(f"an address with its name has at most {LONGEST} characters")
    bare = _QUOTATION.sub("", text)
    if _MAILTO.match(bare):
        raise ValueError("write the address alone, without the mailto: before the name and the @")
    if _FORBIDDEN.search(text.strip()):
        raise ValueError("a line break or another control character is before or after the @")
    if bare.count("@") > 1 and re.search(r"[,;\s]", bare):
        raise ValueError("an address has one @: write several as a list of texts")


def _local_and_domain(spec: str) -> tuple[str, str]:
    quoted = _QUOTED_LOCAL.fullmatch(spec)
    if quoted is not None:
        local, domain = quoted[1], quoted[2]
    else:
        local, at, domain = spec.rpartition("@")
        if not at or "@" in local:
            raise ValueError("an address has one @, such as ann@example.org")
        if not _LOCAL.fullmatch(local):
            raise ValueError(
                "the part before the @ begins with a dot, has a character that an address cannot have, or is missing"
            )
    if len(local.encode()) > 64:
        raise ValueError("the part before the @ is longer than 64 bytes")
    _ascii_domain(domain)
    return local, domain


def _unquoted(name: str) -> str:
    """A display name without its quotation marks."""
    if _QUOTATION.fullmatch(name) or re.search("[@<>]", name):
        return _QUOTATION.sub(lambda quoted: re.sub(r"\\(.)", r"\1", quoted[0][1:-1]), name)
    return name


@lru_cache(maxsize=1024)
def _ascii_domain(domain: str) -> str:
    """The domain as it is sent to servers. Underscores are accepted; a dot at its end is removed.

    Hosts of private networks have names with underscores. Postfix and Exim accept them, although RFC 5321 does not.
    Postfix removes the dot, and so does Exim if configured to.
    """
    name = domain.lower()
    if not domain.isascii():
        try:
            labels = idna.uts46_remap(domain, std3_rules=False).split(".")
            name = ".".join(label if label.isascii() else idna.encode(label).decode("ascii") for label in labels)
        except idna.IDNAError:
            raise ValueError("the part after the @ is not a domain name that can be written in ASCII (IDNA)") from None
    name = name.removesuffix(".")
    if len(name) > 253 or not _DOMAIN.fullmatch(name):
        raise ValueError("the part after the @ is not a domain name")
    return name


def _several(value: Any) -> Any:
    if isinstance(value, str | Address):
        return [value]
    if not isinstance(value, list | tuple):
        raise ValueError("is an address, such as ann@example.org, or a list of addresses")
    return value


_SCHEMA: Final[dict[str, Any]] = {"type": "string", "maxLength": LONGEST, "pattern": PATTERN}


def _one_or(least: int) -> WithJsonSchema:
    many = {"type": "array", "items": _SCHEMA, "minItems": least, "maxItems": MAX_RECIPIENTS}
    return WithJsonSchema({"anyOf": [_SCHEMA, many]})


Mailbox = Annotated[Address, PlainValidator(Address.parse), PlainSerializer(str), WithJsonSchema(_SCHEMA)]
"""A field that is given as a string and parsed as an `Address`."""

Mailboxes = Annotated[list[Mailbox], BeforeValidator(_several), Field(max_length=MAX_RECIPIENTS), _one_or(0)]
"""A field with one address or a list of them."""

Recipients = Annotated[
    list[Mailbox], BeforeValidator(_several), Field(min_length=1, max_length=MAX_RECIPIENTS), _one_or(1)
]
"""The same, and at least one."""
