"""The names that a server answers to, compared with the Host header of each request.

A website can have its own name lead to 127.0.0.1, and so make a browser ask a server of this machine with the page's
rights (DNS rebinding). The browser still sends the website's name. An address is no name that somebody could move: it
is always answered, so that probes and scrapes reach a pod.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence


def refusal(allowed: Sequence[str], hosts: Sequence[str]) -> str | None:
    """Why a request with these Host headers is refused, or None. Nothing `allowed` means every name.

    Quotes nothing of the request.
    """
    if not allowed:
        return None
    if len(hosts) != 1:
        return "the request has to name one host, in a single Host header"
    name = _name(hosts[0])
    if name in allowed or _is_address(name):
        return None
    return (
        f"this server answers to {', '.join(allowed)} and to addresses: ask it by one of them, or add the name to"
        " TASKFLUX_HTTP__ALLOWED_HOSTS"
    )


def names(text: str) -> tuple[str, ...]:
    """The names in a list with commas."""
    return tuple(filter(None, (_name(each) for each in text.split(","))))


def _name(host: str) -> str:
    """A host without its port and brackets, as it is compared."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
