"""What is done wrong on purpose: each of these must break the protocol, and the model must notice it."""

from __future__ import annotations

from enum import StrEnum


class Wrong(StrEnum):
    """A mutation of the protocol."""

    NARROW_BEFORE_LOCK = "narrow-before-lock"
    CLAIM_OVERWRITES = "claim-overwrites"
    SETTLE_UNFENCED = "settle-unfenced"
    CLAIM_LEAVES_OUTBOX = "claim-leaves-outbox"
    CONFIRM_ANY_VERSION = "confirm-any-version"
    CLAIM_WITHOUT_LOCK = "claim-without-lock"
    CANCEL_IN_ONE_SNAPSHOT = "cancel-in-one-snapshot"
    OUTBOX_NOT_RECHECKED = "outbox-not-rechecked"
    OUTBOX_BY_SNAPSHOT = "outbox-by-snapshot"

    @property
    def meaning(self) -> str:
        return _MEANINGS[self]


_MEANINGS = {
    Wrong.NARROW_BEFORE_LOCK: "cancel, expire, promise and requeue read claims as of their own start",
    Wrong.CLAIM_OVERWRITES: "a claim is inserted with ON CONFLICT DO UPDATE",
    Wrong.SETTLE_UNFENCED: "a settlement compares neither its claim nor the version that comes with it",
    Wrong.CLAIM_LEAVES_OUTBOX: "a claim does not delete the outbox row",
    Wrong.CONFIRM_ANY_VERSION: "a confirmation does not compare the version of the outbox row",
    Wrong.CLAIM_WITHOUT_LOCK: "the primary key of claims is the only fence of a claim: the wide row is not locked",
    Wrong.CANCEL_IN_ONE_SNAPSHOT: "cancel asks NOT EXISTS (claims) in the statement that waits for the lock",
    Wrong.OUTBOX_NOT_RECHECKED: "promise and expire change the wide row whatever the outbox row has become",
    Wrong.OUTBOX_BY_SNAPSHOT: "cancel and a late settlement delete the outbox row that their own snapshot has",
}
