"""TaskFlux: work outside the request.

What an application imports to write a handler of its own::

    from taskflux import Receipt, Task, handler


    @handler("resize-image", payload=Resize)
    async def resize_image(task: Task[Resize]) -> Receipt: ...
"""

from taskflux.providers.provider import Provider, provider
from taskflux.tasks.errors import Ambiguous, Misconfigured, Permanent, Transient, Unavailable
from taskflux.tasks.model import Receipt, Task
from taskflux.tasks.policy import RetryPolicy
from taskflux.worker.handler import Handler, handler

__all__ = [
    "Ambiguous",
    "Handler",
    "Misconfigured",
    "Permanent",
    "Provider",
    "Receipt",
    "RetryPolicy",
    "Task",
    "Transient",
    "Unavailable",
    "handler",
    "provider",
]
