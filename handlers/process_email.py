"""process-email: sends mails over SMTP."""

from __future__ import annotations

from taskflux.providers import smtp
from taskflux.providers.email import Email, SendsMail
from taskflux.tasks.bounds import MOST_BYTES
from taskflux.tasks.model import Receipt, Task
from taskflux.tasks.policy import RetryPolicy
from taskflux.worker.handler import handler


@handler(
    "email",
    payload=Email,
    provider=smtp.connect,
    # From five seconds up: most failures are short, and a server that wants more time says so (greylisting, quota).
    retry=RetryPolicy(max_attempts=6, first_delay=5.0),
    # Above SMTP's own ten minutes for the mail itself, so that we are not the ones who cut it off.
    timeout=900.0,
    # As many as `SmtpSettings.connections`: one that only waits for a connection counts as begun when a worker drains.
    concurrency=10,
    max_bytes=MOST_BYTES,  # attachments
    # A second mail with the same Message-ID does less harm than none: most readers show it once.
    ambiguous="resend",
)
async def process_email(task: Task[Email], mail: SendsMail) -> Receipt:
    """Send the mail to all recipients who do not have it yet."""
    result = await mail.send(
        task.payload,
        message_id=task.side_effect_id,
        date=task.created_at,
        progress=task.progress,
        attempt=task.attempt,
    )
    return Receipt(result)
