"""What an SMTP reply means for the mail, a recipient, and the server as a whole; and who has the mail. Pure.

Codes: RFC 5321, 4.2. Enhanced status codes: RFC 3463 and the IANA registry, read from the start of the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from taskflux.tasks.errors import JsonValue, Misconfigured, Permanent, ProviderError, Transient, Unavailable

QUOTA_WAIT: Final = 7200.0
"""Seconds before a full mailbox, or a server short of storage, is asked again: a person has to make room."""

GREYLIST_WAIT: Final = 300.0
"""Seconds before a greylisting server is asked again; five minutes is what most of them want to see."""

_ENHANCED: Final = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?=\s|$)")
_GREYLISTED: Final = re.compile(r"gr[ae]y-?list", re.IGNORECASE)
_LONGEST_TEXT: Final = 400

# Replies of servers to a client that they do not relay for, at RCPT, or at DATA if they delay their checks:
# Postfix "Relay access denied", "Client host rejected: Access denied", "Sender address rejected: not logged in",
# Exim "relay not permitted", Sendmail "Relaying denied", Exchange "Unable to relay", "Client was not authenticated",
# qmail "that domain isn't in my list of allowed rcpthosts", others "authentication required".
_DENIED: Final = re.compile(
    r"relay(?:ing)?\b.{0,40}\b(?:denied|prohibited|refused|rejected|disallowed|forbidden)"
    r"|relay(?:ing)?\b.{0,20}\bnot (?:permitted|allowed|authori[sz]ed|enabled|supported)"
    r"|(?:unable|not (?:permitted|allowed|authori[sz]ed)) to relay"
    r"|(?:(?:do|does|will|can) ?not|don't|doesn't|won't|can't) relay"
    r"|\bno relay(?:ing)?\b|\brcpthosts\b|not configured to relay|relay attempt|prohibit(?:ed|ion)\W+relaying"
    r"|client (?:host|address)\b.{0,80}\b(?:rejected|denied|blocked)|client (?:was |is )?not authenticated"
    r"|not an? (?:open )?relay\b"
    r"|\bauth(?:entication|orization)? (?:is )?(?:required|needed)|requires? (?:smtp )?auth(?:entication)?\b"
    r"|must (?:first )?(?:be authenticated|authenticate|log ?in)|please (?:first )?(?:authenticate|log ?in)"
    r"|(?:need|have) to (?:first )?(?:be authenticated|authenticate|log ?in)|\bauth(?:enticate)? first\b"
    r"|(?:turn|switch) on (?:smtp )?auth|(?:enable|use) smtp auth|not a gateway"
    r"|not (?:authenticated|logged in)\b",
    re.IGNORECASE,
)
_ACCESS_DENIED: Final = re.compile(r"\baccess denied\b", re.IGNORECASE)
_ABOUT_THE_RECIPIENT: Final = re.compile(
    r"recipient address rejected|\bmailbox\b|\buser (?:unknown|not found)|resolver\.rst", re.IGNORECASE
)
# Postfix replies this for a single recipient that a table lists, and for all recipients without AUTH if its
# smtpd_relay_restrictions is "permit_sasl_authenticated, reject", as on ports 587 and 465.
_BARRED: Final = re.compile(r"recipient address rejected: access denied", re.IGNORECASE)


class Stage(Enum):
    """What the reply answers: the way to the first mail, MAIL FROM, one RCPT TO, DATA, and the mail itself."""

    SESSION = "session"
    SENDER = "sender"
    RECIPIENT = "recipient"
    DATA = "data"
    MAIL = "mail"


class Kind(Enum):
    ACCEPTED = "accepted"
    DEFERRED = "deferred"  # this recipient, later
    REFUSED = "refused"  # this recipient, never
    UNAVAILABLE = "unavailable"  # the server, for all
    THROTTLED = "throttled"  # the same, and it wants fewer connections
    MISCONFIGURED = "misconfigured"  # the server refuses us
    MEANINGLESS = "meaningless"  # not a reply to the command: the session is out of step, or not SMTP


class Throttled(Unavailable):
    """The server accepts less than we send: back off, and use fewer connections."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply and what follows from it. `retry_after` is in seconds, 0 where the usual backoff will do."""

    code: int
    text: str
    kind: Kind
    retry_after: float = 0.0
    denied: bool = False
    """Whether the server does not relay for us, or requires AUTH: this concerns every mail."""
    barred: bool = False
    """Whether it denies access, either to us or only for this recipient."""

    def __str__(self) -> str:
        return f"{self.code} {self.text}".rstrip()

    def raise_for_server(self) -> None:
        """Raise what the reply says about the server; return when it is about the mail or a recipient only.

        Raises:
            ProviderError: unavailable, throttled, misconfigured or meaningless.
        """
        error = _ERRORS.get(self.kind)
        if error is not None:
            raise error(f"the SMTP server answered {self}")


_ERRORS: Final[dict[Kind, type[ProviderError]]] = {
    Kind.UNAVAILABLE: Unavailable,
    Kind.THROTTLED: Throttled,
    Kind.MISCONFIGURED: Misconfigured,
    Kind.MEANINGLESS: Unavailable,
}


def judge(code: int, text: str, stage: Stage) -> Reply:
    """Classify a reply; its text is made printable and cut, so that it can be kept on a row."""
    text = _printable(text)
    enhanced = _ENHANCED.match(text)
    status = enhanced[0] if enhanced else None
    kind = _kind(code, status, text, stage)
    wait = _wait(code, status, text) if kind is Kind.DEFERRED else 0.0
    denied = kind in (Kind.DEFERRED, Kind.REFUSED) and _denies_us(code, status, text)
    refused = stage is Stage.RECIPIENT and kind is Kind.REFUSED  # later, the mail may have been sent
    barred = refused and status in (None, "5.7.1") and _BARRED.search(text) is not None
    return Reply(code, text, kind, wait, denied, barred)


_GO_ON: Final = {stage: range(354, 355) if stage is Stage.DATA else range(200, 300) for stage in Stage}
"""Codes of success (RFC 5321, 4.3.2)."""


def _kind(code: int, status: str | None, text: str, stage: Stage) -> Kind:
    """Success is checked first, then what the server says about itself, then what it says about the mail."""
    if code in _GO_ON[stage]:
        return Kind.ACCEPTED
    if not 400 <= code < 600:
        # A 250 to DATA is such a one: the server has not seen the mail, whatever it says.
        return Kind.MEANINGLESS
    if code in (530, 534, 535, 538) or status == "5.4.5":
        # 5.4.5 is Google's "daily sending limit exceeded": like an empty balance, no mail is its cause.
        return Kind.MISCONFIGURED
    if code == 421 or (code == 454 and (status in (None, "4.7.0") or "throttl" in text.lower())):
        return Kind.THROTTLED
    if status == "4.3.1":  # the server's own disk is full
        return Kind.UNAVAILABLE
    if stage is Stage.SESSION:
        return Kind.MISCONFIGURED if code >= 500 else Kind.UNAVAILABLE
    if code < 500 or (code == 552 and status == "5.5.3"):
        return Kind.DEFERRED  # 552 for too many recipients means 452: RFC 5321, 4.5.3.1.10
    if stage is Stage.SENDER and not _about_this_message(code, status):
        return Kind.MISCONFIGURED  # MAIL FROM carries nothing but our own `sender`
    return Kind.REFUSED


def _denies_us(code: int, status: str | None, text: str) -> bool:
    """Servers use 5.7.x (RFC 3463, 3.8) or no status for it. 5.4.1 "Access denied" means an unknown recipient."""
    if _ABOUT_THE_RECIPIENT.search(text):
        return False
    if re.search("(?:helo command|sender address) rejected", text, re.IGNORECASE):
        return code >= 500  # these have codes of their own
    if status is not None and ".7." not in status and code != 503:  # "503 5.5.1 authenticate first"
        return False
    if code < 500:
        return "relay" in text.lower() and _DENIED.search(text) is not None
    return _DENIED.search(text) is not None or _ACCESS_DENIED.search(text) is not None


def _about_this_message(code: int, status: str | None) -> bool:
    # Size (RFC 1870), parameters such as SMTPUTF8 (RFC 5321), an address that needs SMTPUTF8 (RFC 6531).
    return code in (504, 552, 555) or status in ("5.3.4", "5.5.4", "5.6.7")


def _wait(code: int, status: str | None, text: str) -> float:
    if status == "4.5.3" or code == 552:
        return 0.0  # too many recipients at once: the next transaction has fewer
    if code == 452 or status == "4.2.2":
        return QUOTA_WAIT
    if status == "4.7.1" or _GREYLISTED.search(text):
        return GREYLIST_WAIT
    return 0.0


def _printable(text: str) -> str:
    decoded = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    line = " ".join("".join(char if char.isprintable() else " " for char in decoded).split())
    return line if len(line) <= _LONGEST_TEXT else line[: _LONGEST_TEXT - 1] + "…"


@dataclass(slots=True)
class Deliveries:
    """The state of each recipient, by the address on the envelope, with the server's reply in its own words.

    `wanted` lists all recipients of the mail. The state is kept from attempt to attempt as the task's progress.
    """

    wanted: Sequence[str]
    message_id: str
    delivered: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    deferred: dict[str, str] = field(default_factory=dict)
    retry_after: float | None = None

    def resume(self, progress: Mapping[str, JsonValue]) -> None:
        """Continue from what earlier attempts noted.

        Recipients who have the mail do not get it again. Those who were refused are tried again only under another
        message id: then a person has replayed the task.
        """
        self.delivered = _replies(progress.get("delivered"), self.wanted)
        if progress.get("messageId") == self.message_id:
            self.refused = _replies(progress.get("refused"), self.wanted)

    @property
    def open(self) -> list[str]:
        """Recipients to be asked in this attempt."""
        return [address for address in self.wanted if address not in self.delivered and address not in self.refused]

    def note(self, replies: Mapping[str, Reply]) -> None:
        """Note the last reply about each address."""
        for address, reply in replies.items():
            self.deferred.pop(address, None)
            match reply.kind:
                case Kind.ACCEPTED:
                    self.delivered[address] = str(reply)
                case Kind.REFUSED:
                    self.refused[address] = str(reply)
                case _:
                    self.deferred[address] = str(reply)
        waits = [reply.retry_after for reply in replies.values() if reply.kind is Kind.DEFERRED]
        self.retry_after = min(waits, default=0.0) or None

    def progress(self) -> dict[str, JsonValue]:
        """What the next attempt, and a reader of the task, have to know."""
        return {
            "messageId": self.message_id,
            "delivered": dict(self.delivered),
            "refused": dict(self.refused),
            "deferred": dict(self.deferred),
        }

    def conclude(self) -> dict[str, JsonValue]:
        """The result of a mail that at least one recipient has, and that is deferred for none.

        Raises:
            Transient: some are to be tried again.
            Permanent: all were refused.
        """
        if self.deferred:
            raise Transient(
                f"{len(self.deferred)} of {len(self.wanted)} recipients deferred: {_first(self.deferred)}",
                retry_after=self.retry_after,
                progress=self.progress(),
            )
        if not self.delivered:
            raise Permanent(f"every recipient was refused: {_first(self.refused)}", progress=self.progress())
        return self.progress()


def merged(first: Mapping[str, JsonValue], second: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    """The progress of one mail from two notes of different attempts: delivered in either is delivered."""
    if not first or not second:
        return second or first
    delivered = {**_mapping(first.get("delivered")), **_mapping(second.get("delivered"))}
    return {**first, **second, "delivered": delivered}


def _mapping(value: JsonValue) -> Mapping[str, JsonValue]:
    return value if isinstance(value, Mapping) else {}


def _replies(noted: JsonValue, wanted: Sequence[str]) -> dict[str, str]:
    if not isinstance(noted, Mapping):
        return {}
    return {address: str(noted[address]) for address in wanted if address in noted}


def _first(replies: Mapping[str, str]) -> str:
    address, reply = next(iter(replies.items()))
    return f"{address}: {reply}"
