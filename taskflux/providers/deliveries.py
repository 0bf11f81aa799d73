"""Who of a mail's recipients has it, who never will, and who is tried again. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from taskflux.providers.smtp_replies import Kind, Reply
from taskflux.tasks.errors import JsonValue, Permanent, Transient


@dataclass(slots=True)
class Deliveries:
    """The state of each recipient, by the address on the envelope, with the server's reply in its own words.

    `wanted` is everybody whom the mail is for. It is carried from attempt to attempt as the task's progress.
    """

    wanted: Sequence[str]
    message_id: str
    delivered: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    deferred: dict[str, str] = field(default_factory=dict)
    retry_after: float | None = None

    @classmethod
    def resume(cls, wanted: Sequence[str], message_id: str, progress: Mapping[str, JsonValue]) -> Deliveries:
        """Go on from what earlier attempts noted.

        Who has the mail does not get it again. Who was refused is asked again only under another message id: then a
        person has looked at it and sent it again.
        """
        same = progress.get("messageId") == message_id
        delivered = _replies(progress.get("delivered"), wanted)
        refused = _replies(progress.get("refused"), wanted) if same else {}
        return cls(wanted, message_id, delivered, refused)

    @property
    def open(self) -> list[str]:
        """Recipients to be asked in this attempt."""
        return [address for address in self.wanted if address not in self.delivered and address not in self.refused]

    def note(self, replies: Mapping[str, Reply]) -> None:
        """Take down the last reply about each address."""
        for address, reply in replies.items():
            self.deferred.pop(address, None)
            self._place(reply)[address] = str(reply)
        waits = [reply.retry_after for reply in replies.values() if reply.kind is Kind.DEFERRED]
        self.retry_after = min(waits, default=0.0) or None

    def progress(self) -> dict[str, JsonValue]:
        """What the next attempt, and whoever reads the task, has to know."""
        return {
            "messageId": self.message_id,
            "delivered": dict(self.delivered),
            "refused": dict(self.refused),
            "deferred": dict(self.deferred),
        }

    def conclude(self) -> dict[str, JsonValue]:
        """The result of a mail that nobody waits for any more and at least one recipient has.

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

    def _place(self, reply: Reply) -> dict[str, str]:
        match reply.kind:
            case Kind.ACCEPTED:
                return self.delivered
            case Kind.REFUSED:
                return self.refused
            case _:
                return self.deferred


def merged(first: Mapping[str, JsonValue], second: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    """Two notes about one mail, which may know of different attempts: who has it in either has it."""
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
