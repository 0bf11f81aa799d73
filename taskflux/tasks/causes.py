"""What a failure's cause is, whoever it happened to: failures with one cause have one fingerprint. Pure.

The error class alone says too little: `Crash` is every bug of a handler. The message alone says too much: it names the
recipient. So the cause is the class together with the message in which numbers, ids, addresses and quoted values are
replaced. What tells causes apart stays: codes of SMTP and HTTP, of an errno or a provider, and names of code (the key
of a `KeyError`, an attribute, a module).
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Final, NamedTuple

VERSION: Final = 1
"""Of the rules below. It is part of every fingerprint, so that those of two versions are never compared."""

LOOKED_AT: Final = 2_000
"""Characters of a message that count; what follows is often a copy of the input."""
LONGEST_MESSAGE: Final = 300
"""Characters of a normalised message that are shown; all of it counts."""
_DIGITS: Final = 12


class Cause(NamedTuple):
    """A cause: its fingerprint (`1-4f0c2a9be371`: version and hash), and the message without what varies."""

    fingerprint: str
    message: str


def cause_of(error_class: str, message: str | None) -> Cause:
    """The cause of a failure."""
    normal = normalised(message or "")
    digest = sha256(f"{error_class}\n{normal}".encode("utf-8", "replace")).hexdigest()[:_DIGITS]
    shown = normal if len(normal) <= LONGEST_MESSAGE else normal[: LONGEST_MESSAGE - 1] + "…"
    return Cause(f"{VERSION}-{digest}", shown)


def normalised(message: str) -> str:
    """`message` on one line, with placeholders for what differs between two failures of one cause."""
    line = " ".join(message[:LOOKED_AT].split())
    return _LIST.sub(r"\1", _VARYING.sub(_placeholder, line))


def _placeholder(found: re.Match[str]) -> str:
    kind, text = found.lastgroup, found[0]
    match kind:
        case "plain" | "kept":
            return text
        case "url":
            return found["scheme"] + found["host"] + ("<path>" if found["path"] else "")
        case "member":
            return f'{found["member_start"]}{normalised(found["member_value"])}"'
        case "word":
            return "<n>" if text.isdecimal() else text if _NAME.fullmatch(text) else "<id>"
    return f"<{kind}>"


# The first alternative that fits at a place decides; no part may be repeated without a bound.
_VARYING: Final = re.compile(
    # Words alone, quickly.
    r"(?P<plain>(?<!\S)(?!(?:KeyError|HTTP|SQLSTATE|[Ss]tatus|[Cc]ode|[Ee]rr|answered|returned|attribute|module|import"
    r"|argument|column|relation|keyword|property|function|type|codec|parameter|field|name)\w*\b)[A-Za-z]{1,40}(?= ))"
    r"|(?P<url>(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]{1,20}://)(?:[^\s/@'\"<>]{1,100}@)?(?P<host>[^\s/?#'\"<>)\]]{1,200})"
    r"(?P<path>[/?#][^\s'\"<>)\]]{0,2000})?)"
    r"|(?P<address>(?<![^\s<>\"'(),:;@=\[\]])<?(?:[^\s<>\"'(),:;@=\[\]]|(?<=\w)'(?=\w)){1,100}@[^\s<>\"'(),:;@\]]{1,200}(?<![.])>?)"
    r"|(?P<id>\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b|\b0x[0-9a-fA-F]{1,20}\b)"
    r"|(?P<time>\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d)?)?(?!\w)"
    r"|\b\d{1,2}:\d\d:\d\d(?:[.,]\d{1,9})?\b)"
    r"|(?P<ip>\b(?:\d{1,3}\.){3}\d{1,3}(?::\d{1,5})?\b"
    r"|(?<![\w:])\[?(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{1,4}\]?(?::\d{1,5})?(?!\w))"
    # Names of code, quoted: what is missing there is the cause.
    r"|(?P<kept>KeyError:? ['\"][A-Za-z_][A-Za-z_.]{0,60}['\"]"
    r"|\b(?:attribute|module named|import name|argument|arguments|argument:|arguments:|column|relation|keyword|property"
    r"|function|type|codec|parameter|field) ['\"][A-Za-z_][\w.]{0,60}['\"]"
    r"|['\"][A-Za-z_][\w.]{0,60}['\"] (?:object|codec|and ['\"][A-Za-z_]\w{0,60}['\"])(?!\w)"
    r"|\bname ['\"][A-Za-z_]\w{0,60}['\"](?= is not defined)"
    # Codes: of HTTP, an errno, SQLSTATE, a provider; and the replies of SMTP.
    r"|\b(?:HTTP(?:/\d(?:\.\d)?)?|[Ss]tatus(?: code)?|[Cc]ode|[Ee]rr(?:no|or)(?: code)?|SQLSTATE|answered|returned)"
    r"(?: |: ?|=|#)\[?(?:\d{1,5}|\d[0-9A-Z]{4})\b(?![.:-]?\d)"
    r"|\b[245]\.\d{1,3}\.\d{1,3}\b(?!\.\d)"
    r"|(?:(?<=^)|(?<=: )|(?<=answered )|(?<=reply )|(?<=said )|(?<=; ))[1-5]\d\d(?=[ -](?!of\b))"
    r"|\([1-9]\d\d\)(?=$))"
    # A member of a JSON document that says what is wrong is a message of its own.
    r"|(?P<member>(?P<member_start>\"(?:error|error_?code|code|reason|message|title|type|detail|status|msg)\" ?: ?\")"
    r"(?P<member_value>[^\"]{0,500})\")"
    r"|(?P<value>(?<!\w)'[^']{0,1000}'(?!\w)|(?<!\w)\"[^\"]{0,1000}\"(?!\w)|`[^`]{1,1000}`|“[^”]{0,1000}”|«[^»]{0,1000}»)"
    r"|(?P<word>(?<!\w)[^\W\d_]{0,100}[_-]?\d[\w-]{0,1000})"
)
_NAME: Final = re.compile(
    r"(?:utf|iso|sha|md|base|ipv|tlsv?|sslv?|smtputf|oauth|xoauth|u?int|float|rfc|latin|ascii|cp|http)[-_]?\d{1,4}"
    r"|\dbit\w{1,10}|h2c?|e164",
    re.IGNORECASE,
)
"""Words with a digit that vary with no failure."""
_LIST: Final = re.compile(r"(<(?:address|value|n|id|ip|time)>)(?:(?:,| and|, and|;)? \1){1,2000}")
