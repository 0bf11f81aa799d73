"""The outside world: each module here speaks to one provider and turns its answers into `handlers.tasks.errors`."""

from handlers.providers.provider import Provider, provider

__all__ = ["Provider", "provider"]
