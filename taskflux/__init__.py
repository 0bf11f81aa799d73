"""TaskFlux: work outside the request.

What an application imports to write a handler of its own::

    from taskflux import Receipt, Task, handler


    @handler("resize-image", payload=Resize)
    async def resize_image(task: Task[Resize]) -> Receipt: ...

A name is imported when it is first used: the command is in this package, too, and needs none of them to begin.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

_PLACES: Final = {
    "Ambiguous": "taskflux.tasks.errors",
    "Handler": "taskflux.worker.handler",
    "Misconfigured": "taskflux.tasks.errors",
    "Permanent": "taskflux.tasks.errors",
    "Provider": "taskflux.providers.provider",
    "Receipt": "taskflux.tasks.model",
    "RetryPolicy": "taskflux.tasks.policy",
    "Task": "taskflux.tasks.model",
    "Transient": "taskflux.tasks.errors",
    "Unavailable": "taskflux.tasks.errors",
    "handler": "taskflux.worker.handler",
    "provider": "taskflux.providers.provider",
}


if TYPE_CHECKING:
    from taskflux.providers.provider import Provider, provider
    from taskflux.tasks.errors import Ambiguous, Misconfigured, Permanent, Transient, Unavailable
    from taskflux.tasks.model import Receipt, Task
    from taskflux.tasks.policy import RetryPolicy
    from taskflux.worker.handler import Handler, handler
else:  # not for type checkers: they would take every name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_PLACES[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


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
