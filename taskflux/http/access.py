"""Who calls, and whether they may: all keys in memory, and one check for every route.

The check asks PostgreSQL nothing. All keys that can be used are read when one has changed, which is asked every
`REFRESH` seconds; what was read is used for `MOST_AGE` seconds at most. So a revoked key stops working within ten
seconds. docs/decisions/0007-access.md says why.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from hmac import compare_digest
from time import monotonic
from typing import Any, Final, Literal

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from taskflux.http.problems import MISSING_SCOPE, STORE_UNAVAILABLE, UNAUTHENTICATED, Problem, store_problem
from taskflux.store.errors import StoreError
from taskflux.store.keys import ApiKeys
from taskflux.tasks.access import KEY, NOBODY, Principal, stored
from taskflux.tasks.access import Scope as Need
from taskflux.worker.settings import AuthSettings

log = logging.getLogger(__name__)

REFRESH: Final = 2.0
"""Seconds between two questions whether a key has changed."""
MOST_AGE: Final = 8.0
"""Seconds for which the keys are used once they were read; with `REFRESH`, less than the ten that are promised."""
ASK_AGAIN: Final = 1.0
"""Seconds between two reads because of a key that is not known; its answer takes as long at most."""
NOTE_USED: Final = 60.0
"""Seconds between two notes of which keys were used."""

Mode = Literal["required", "optional", "off"]
Headers = Mapping[bytes, bytes]
_PRINCIPAL: Final = "taskflux.principal"
_BEARER: Final = b"bearer "


def principal_of(scope: MutableMapping[str, Any]) -> Principal:
    """Who sent the request with this scope: its route has admitted them."""
    principal: Principal = scope[_PRINCIPAL]
    return principal


@dataclass(slots=True, eq=False)
class _Known:
    """A key that can be used until `deadline` (monotonic seconds)."""

    hash: bytes
    principal: Principal
    deadline: float
    used: bool = False


class Access:
    """The keys of a deployment, as a process knows them.

    `fixed` are keys from the settings, with what each may do; `keys` is None where there is no table of keys.
    """

    def __init__(self, mode: Mode, keys: ApiKeys | None, fixed: Mapping[str, Principal] | None = None) -> None:
        self.off = mode == "off"
        """Whether no key is looked at."""
        self._keys = keys
        self._fixed = [
            _Known(hashlib.sha256(key.encode()).digest(), principal, float("inf"))
            for key, principal in (fixed or {}).items()
        ]
        self._known: dict[bytes, _Known] = {}
        self._revision = -1
        self._fresh_until = float("-inf")
        self._asked_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None
        self._anonymous = None if mode == "required" else NOBODY

    def known(self, headers: Headers) -> Principal | None:
        """Who sends these headers, if that can be told now; at no cost to speak of, since each task pays for it.

        None: nobody who is known. `admit` finds out why, and answers.
        """
        if self.off:
            return NOBODY
        given = headers.get(b"authorization")
        if given is None:
            key = headers.get(b"x-api-key")
            if key is None:
                return self._anonymous
        elif b"x-api-key" in headers or given[:7].lower() != _BEARER:
            return None
        else:
            key = given[7:]
        return self._find(key)

    def _find(self, key: bytes) -> Principal | None:
        digest = hashlib.sha256(key).digest()
        known = self._known.get(key[3:15])
        now = monotonic()
        if (
            known is not None
            and now < self._fresh_until
            and now < known.deadline
            and compare_digest(known.hash, digest)
        ):
            known.used = True
            return known.principal
        for each in self._fixed:
            if compare_digest(each.hash, digest):
                return each.principal
        return None

    async def admit(self, scope: Scope, need: Need) -> Principal:
        """Who sends the request, if they may do what needs this scope; `principal_of` returns them from then on.

        Raises:
            Problem: 401, there is no valid key; 403, it has not this scope; 503, the keys cannot be read.
        """
        principal = self.known(_headers(scope["headers"]))
        if principal is None:
            principal = await self._look_again(_headers(scope["headers"]))
        if not principal.may(need):
            raise missing_scope(principal, need)
        scope[_PRINCIPAL] = principal
        return principal

    async def _look_again(self, headers: Headers) -> Principal:
        """The same, once a key that may have been made a moment ago was looked for."""
        key = _presented(headers)
        stale = monotonic() >= self._fresh_until
        sound = key is not None and stored(key) is not None
        if self._keys is not None and (stale or key is None or sound):
            try:
                await self._read_soon(surely=sound)
            except StoreError as error:
                raise store_problem(error) from error
        principal = self.known(headers)
        if principal is not None:
            return principal
        if self._keys is not None and monotonic() >= self._fresh_until:
            raise Problem(
                STORE_UNAVAILABLE,
                "the keys of this deployment could not be read for some seconds: try again",
                headers={"Retry-After": "1"},
                extra={"retryAfter": 1},
            )
        raise unauthenticated(_what_is_wrong(key, none=not self._known and not self._fixed))

    async def _read_soon(self, *, surely: bool) -> None:
        """Read the keys, unless that was done a moment ago; together with others who ask for it.

        `surely`: if it was, wait until it may be done again, since a key may have been made after it.
        """
        came = monotonic()
        if self._reading is not None or came - self._asked_at >= ASK_AGAIN:
            await self._read()
        if surely and self._asked_at < came:
            await asyncio.sleep(self._asked_at + ASK_AGAIN - monotonic())
            await self._read()

    async def refresh(self) -> None:
        """Read the keys if one has changed.

        Raises:
            StoreError: they could not be read; what was known is used until it is too old.
        """
        assert self._keys is not None
        try:
            began = self._asked_at = monotonic()
            revision = await self._keys.revision()
            if revision != self._revision:
                began = monotonic()
                found = await self._keys.usable()
                used = {prefix for prefix, known in self._known.items() if known.used}
                self._known = {
                    each.stored.prefix.encode("ascii"): _Known(
                        each.stored.hash,
                        each.principal,
                        float("inf") if each.seconds is None else began + each.seconds,
                        each.stored.prefix.encode("ascii") in used,
                    )
                    for each in found
                }
                self._revision = revision
            self._fresh_until = began + MOST_AGE
        finally:
            self._reading = None

    async def keep_fresh(self) -> None:
        """Refresh until cancelled, and note by the minute which keys were used. While PostgreSQL is unavailable, what
        was read becomes too old, and calls are answered 503."""
        if self._keys is None or self.off:
            return
        noted_at = monotonic()
        while True:
            try:
                await self._read()
                if monotonic() - noted_at >= NOTE_USED:
                    noted_at = monotonic()
                    await self.note_used()
            except StoreError as error:
                log.debug("keys could not be read: %s", type(error).__name__)
            await asyncio.sleep(REFRESH)

    async def _read(self) -> None:
        if self._reading is None:
            self._reading = asyncio.create_task(self.refresh(), context=Context())
        await asyncio.shield(self._reading)

    async def note_used(self) -> None:
        """Note which keys were used since the last note. Raises StoreError."""
        used = [prefix for prefix, known in self._known.items() if known.used]
        if used and self._keys is not None:
            for prefix in used:
                self._known[prefix].used = False
            await self._keys.note_used([prefix.decode("ascii") for prefix in used])


def guarded(access: Access, need: Need | None) -> type[Route]:
    """The class of routes that need this scope; None: they are public.

    The check comes before anything of the request's body is read.
    """
    if need is None:
        return Route
    return type("Guarded", (Guarded,), {"access": access, "need": need})


class Guarded(Route):
    """A route whose callers are checked first. Made by `guarded`."""

    access: Access
    need: Need

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.methods is None or scope["method"] in self.methods:
            await self.access.admit(scope, self.need)
        await super().handle(scope, receive, send)


def access_for(settings: AuthSettings, keys: ApiKeys | None, fixed: Mapping[str, Principal] | None = None) -> Access:
    """The access that the settings ask for; `fixed` are keys beside the bootstrap key."""
    given = dict(fixed or {})
    if settings.bootstrap_key is not None:
        given[settings.bootstrap_key.get_secret_value()] = Principal("bootstrap")
    if settings.mode == "off":
        log.warning(
            "authentication is off (TASKFLUX_AUTH__MODE): whoever reaches this port may submit, read and replay tasks"
        )
    elif settings.mode == "optional":
        log.warning(
            "authentication is optional (TASKFLUX_AUTH__MODE): whoever sends no key may do everything; set it to"
            " required once all clients send one"
        )
    return Access(settings.mode, keys, given)


def _headers(pairs: Sequence[tuple[bytes, bytes]]) -> Headers:
    """The request's headers; none of ours where one is given twice, so that it cannot be meant otherwise."""
    headers = dict(pairs)
    if len(headers) < len(pairs):
        for name in (b"authorization", b"x-api-key"):
            if sum(each == name for each, _ in pairs) > 1:
                raise unauthenticated(f"{name.decode('ascii').title()} is given more than once: give it once")
    return headers


def _presented(headers: Headers) -> bytes | None:
    """What is given as a key; None: nothing is.

    Raises:
        Problem: 401, that is not how a key is given.
    """
    given, key = headers.get(b"authorization"), headers.get(b"x-api-key")
    if given is not None and key is not None:
        raise unauthenticated("Authorization and X-Api-Key are both given: send the key in one of them")
    if given is not None and given[:7].lower() != _BEARER:
        raise unauthenticated("Authorization has another scheme than Bearer: send `Authorization: Bearer <key>`")
    return given[7:] if given is not None else key


FIRST_KEY: Final = "taskflux keys create first --scopes submit,read"


def _what_is_wrong(key: bytes | None, *, none: bool) -> str:
    if none:
        return (
            f"a key is needed, and there is none yet: make the first one with `{FIRST_KEY}`, where PostgreSQL is"
            f" reached (in Kubernetes: `kubectl exec deploy/taskflux-ingest -- {FIRST_KEY}`), and send it as"
            " `Authorization: Bearer <key>`"
        )
    if key is None:
        how = "send `Authorization: Bearer <key>` or `X-Api-Key: <key>`"
        return f"a key is needed: {how}; `taskflux keys create` makes one"
    if KEY.fullmatch(key) is None:
        return "this is not a key of TaskFlux: `taskflux keys create` makes one"
    return "this key is unknown, revoked or expired: `taskflux keys list --all` shows which"


def unauthenticated(detail: str) -> Problem:
    """The problem of a call without a valid key. A handler that calls notify holds its tasks until it has one."""
    extra = {"errorClass": "Misconfigured", "reason": detail}
    return Problem(UNAUTHENTICATED, detail, headers={"WWW-Authenticate": "Bearer"}, extra=extra)


def missing_scope(principal: Principal, need: Need) -> Problem:
    """The problem of a call that its key does not allow."""
    has = ", ".join(sorted(principal.scopes)) or "none"
    detail = f"this needs the scope {need}, and the key has {has}"
    extra = {"scope": need.value, "errorClass": "Misconfigured", "reason": detail}
    return Problem(MISSING_SCOPE, detail, extra=extra)


def other_type(principal: Principal) -> Problem:
    """The problem of a submission of a type that its key is not bound to."""
    bound = ", ".join(sorted(principal.types or ()))
    detail = f"this key is bound to the task types {bound}"
    return Problem(MISSING_SCOPE, detail, extra={"types": sorted(principal.types or ())})


def only_types(principal: Principal, task_type: str | None) -> None:
    """A list must ask for a type that its key is bound to.

    Raises:
        Problem: 403, it does not.
    """
    if not principal.sees(task_type):
        bound: Collection[str] = sorted(principal.types or ())
        detail = f"this key is bound to task types: filter by one of them, taskType={', '.join(bound)}"
        raise Problem(MISSING_SCOPE, detail, extra={"types": list(bound)})
