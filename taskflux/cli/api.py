"""Calls of a running TaskFlux over HTTP, and every way they can fail as a sentence and an exit status."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click
import httpx

from taskflux.cli.program import FAILED, KEY_VARIABLE, UNREACHABLE, URL, URL_VARIABLE, USAGE, dev, leave, say_used
from taskflux.providers.answers import UNPACKED, Body
from taskflux.version import VERSION

DEFAULT_URL: Final = "http://localhost:8080"
TIMEOUT: Final = 30.0
"""Seconds that one answer may take: longer than any statement of the server."""

MOST_BYTES: Final = 256 * 1024 * 1024
"""Bytes of an answer that are read: a page of the largest tasks has fewer."""

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")

F = TypeVar("F", bound=Callable[..., Any])
Document = dict[str, Any]


class ApiError(Exception):
    """A call did not do what was asked; the text is for a person, `status` is what the command exits with.

    `uncertain`: the request may have been carried out all the same.
    """

    def __init__(self, message: str, status: int, *, uncertain: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.uncertain = uncertain


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said: its headers and JSON document."""

    headers: Mapping[str, str]
    document: Document


class Api:
    """One running TaskFlux."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        try:
            self._http = httpx.Client(
                base_url=self.url,
                timeout=TIMEOUT,
                trust_env=httpx.URL(self.url).host not in _LOOPBACK,  # no proxy leads to this machine
                headers={
                    "accept": "application/json",
                    "user-agent": f"taskflux-cli/{VERSION}",
                    **UNPACKED,
                    **_authorization(key),
                },
            )
        except httpx.InvalidURL as error:
            raise ApiError(f"{url!r} is not an address: give --url http://host:port ({error})", USAGE) from error

    def close(self) -> None:
        """Close what is open."""
        self._http.close()

    def get(self, path: str, **query: Any) -> Document:
        """The document at `path`; query parameters that are None are left out. Raises ApiError."""
        return self.call("GET", path, query=query).document

    def list(self, path: str, limit: int, *, cursor: str | None, **query: Any) -> tuple[Sequence[Document], str | None]:
        """At most `limit` items from `cursor` on, and the cursor that goes on behind them. Raises ApiError.

        A page may be short and still not be the last one. If the server gives up a search (422) after some items were
        found, these are returned, and the next call raises the error.
        """
        items: list[Document] = []
        while True:
            try:
                page = self.get(path, cursor=cursor, **query, limit=min(limit - len(items), 200))
            except ApiError as error:
                if not items or error.status == UNREACHABLE:
                    raise
                return items, cursor
            items += page["items"][: limit - len(items)]
            cursor = page.get("nextCursor")
            if cursor is None or len(items) >= limit:
                return items, cursor

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """The answer to one request.

        Raises:
            ApiError: it was refused (1), or the server cannot be reached or cannot answer now (3).
        """
        parameters = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            with self._http.stream(
                method,
                path,
                params=parameters or None,
                content=None if body is None else json.dumps(body).encode(),
                headers={**(headers or {}), **({} if body is None else {"content-type": "application/json"})},
            ) as response:
                said = Body(response.headers.get("content-encoding"), MOST_BYTES)
                all(said.add(chunk) for chunk in response.iter_raw())
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol) as error:
            raise ApiError(self._unreachable(error), UNREACHABLE) from error
        except httpx.RequestError as error:
            why = "did not answer in time" if isinstance(error, httpx.TimeoutException) else "broke the connection off"
            raise ApiError(f"{self.url} {why}: {type(error).__name__}", UNREACHABLE, uncertain=True) from error
        return self._read(response, said.whole())

    def _read(self, response: httpx.Response, body: bytes) -> Answer:
        document = _document(response, body)
        if response.is_success and document is not None:
            return Answer(response.headers, document)
        if document is None or "title" not in document:
            raise ApiError(
                f"{self.url} answered {response.status_code} to {response.request.method} {response.request.url.path}"
                f" in a way TaskFlux does not: is it the address of its API? Set --url or {URL_VARIABLE}",
                UNREACHABLE,
            )
        status = UNREACHABLE if response.status_code >= 500 or response.status_code == 429 else FAILED
        uncertain = response.status_code >= 500
        raise ApiError(told(document), status, uncertain=uncertain)

    def _unreachable(self, error: httpx.RequestError) -> str:
        return (
            f"{self.url} cannot be reached ({error or type(error).__name__}): start TaskFlux, for example with"
            f" `taskflux dev`, or name its address with --url or {URL_VARIABLE}"
        )


def told(problem: Document) -> str:
    """A problem document as a person reads it: what is wrong, then each bad field on a line of its own."""
    detail = str(problem.get("detail") or "")
    lines = [f"{problem['title']}: {detail}" if detail else str(problem["title"])]
    lines += [f"  {error.get('field')}: {error.get('message')}" for error in problem.get("errors") or ()]
    return "\n".join(lines)


def _document(response: httpx.Response, body: bytes) -> Document | None:
    if "json" not in response.headers.get("content-type", ""):
        return None
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _open(context: click.Context, parameter: click.Parameter, url: str | None) -> Api:
    try:
        key = context.meta.get(_KEY) or os.environ.get(KEY_VARIABLE)
        api = Api(url or context.meta.get(URL) or os.environ.get(URL_VARIABLE) or _url_of_dev() or DEFAULT_URL, key)
    except ApiError as error:
        leave(str(error), error.status)
    context.call_on_close(api.close)
    return api


def _authorization(key: str | None) -> dict[str, str]:
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ApiError(
            f"the key is not one: {KEY_VARIABLE} holds what `taskflux keys create` has printed, on one line", USAGE
        )
    return {"authorization": f"Bearer {key}"}


def _url_of_dev() -> str | None:
    found = dev()
    if found is None or not (url := found.variables.get(URL_VARIABLE)):
        return None
    say_used(found)
    return url


def api_option(function: F) -> F:
    """`--url`; the command gets an `Api` as its argument `api`, and may let ApiError through (see `ApiCommand`)."""
    default = f"${URL_VARIABLE}, else the `taskflux dev` of this folder, else {DEFAULT_URL}"
    url = click.option("--url", "api", callback=_open, help=f"Where TaskFlux serves its API.  [default: {default}]")
    key = click.option(
        "--api-key",
        expose_value=False,
        is_eager=True,
        callback=_keep_key,
        help=f"Key of the API; others may see a command's arguments, so better set ${KEY_VARIABLE}.",
    )
    return url(key(function))


def _keep_key(context: click.Context, parameter: click.Parameter, key: str | None) -> None:
    if key is not None:
        context.meta[_KEY] = key


_KEY: Final = "taskflux.key"


class ApiCommand(click.Command):
    """A command that talks to the API: what goes wrong there ends it with a sentence and the status that fits."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ApiError as error:
            leave(str(error), error.status)
