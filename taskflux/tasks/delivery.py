"""What a provider reports of a message that it has accepted. Accepted is not delivered."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID


class DeliveryStatus(StrEnum):
    ACCEPTED = "accepted"  # on its way: nothing final is known
    DELIVERED = "delivered"
    FAILED = "failed"
    REJECTED = "rejected"
    BLOCKED = "blocked"
    NDNC = "ndnc"  # the number is on a do-not-call register

    @property
    def rank(self) -> int:
        """Of two reports the one of higher rank is kept; the store's `delivery_rank` says the same."""
        return {DeliveryStatus.ACCEPTED: 0, DeliveryStatus.DELIVERED: 2}.get(self, 1)


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """One report about the side effect of (task, replay).

    `code` and `description` are the provider's, `reported_at` its own time as it wrote it. No number, no name.
    """

    task: UUID
    replay: int
    status: DeliveryStatus
    code: str = ""
    description: str = ""
    request_id: str = ""
    reported_at: str = ""

    @property
    def weight(self) -> tuple[int, str]:
        """Of several reports the heaviest is kept, in whatever order they come."""
        return self.status.rank, self.reported_at
