"""process-sms: sends short messages over MSG91."""

from __future__ import annotations

from taskflux.providers import msg91
from taskflux.providers.sms import SendsSms, Sms
from taskflux.tasks.model import Receipt, Task
from taskflux.worker.handler import handler


@handler(
    "sms",
    payload=Sms,
    provider=msg91.connect,
    # Above the provider's own connect, wait and read timeouts together.
    timeout=120.0,
    # As many as `Msg91Settings.connections`: a task that only waits for one would be held when a worker drains.
    concurrency=32,
    # MSG91 does not recognise a repeat, and each one costs money: a delivery report or a person decides.
    ambiguous="hold",
)
async def process_sms(task: Task[Sms], sms: SendsSms) -> Receipt:
    """Send the message. Accepted is not delivered: the delivery report comes later."""
    request_id = await sms.send(task.payload, crqid=task.side_effect_id, attempt=task.attempt)
    return Receipt(({"requestId": request_id} if request_id else {}) | {"status": "accepted"})
