"""The outside world: each module here speaks to one provider and turns its answers into `taskflux.tasks.errors`."""

from taskflux.providers.provider import Provider, provider

__all__ = ["Provider", "provider"]
