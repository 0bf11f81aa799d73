"""TaskFlux: work outside the request.

What an application imports to write a handler of its own::

    from handlers import Receipt, RetryPolicy, Task, Transient, handler
"""

from handlers.providers.provider import Provider, provider
from handlers.runtime.handler import Handler, handler
from handlers.tasks.errors import Ambiguous, Misconfigured, Permanent, Transient, Unavailable
from handlers.tasks.model import Receipt, Task
from handlers.tasks.policy import RetryPolicy

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
