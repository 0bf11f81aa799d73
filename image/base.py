#!/usr/bin/env python3
"""The base of the image by its digest: a tag can be moved to other contents, a digest cannot.

`python3 image/base.py` asks the registry what the Dockerfile's base is now and prints it, as `name:tag@sha256:…`; CI
builds the images that it tests and releases on that base. `--write` writes it into the Dockerfile. Without either, a
build uses the tag in the Dockerfile.

The digest is that of the bytes in the registry's answer: an index of all platforms, if there is one. Exits with 75 if
the registry is unreachable; then nothing is printed or written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

DOCKERFILE: Final = Path(__file__).parents[1] / "Dockerfile"
UNREACHABLE: Final = 75
TIMEOUT: Final = 30.0
MOST_BYTES: Final = 4 * 1024 * 1024
_BASE: Final = re.compile(r"^(ARG BASE=)(\S+)$", re.MULTILINE)
_PORT: Final = r"(:([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"
_REFERENCE: Final = re.compile(
    rf"(?P<registry>[A-Za-z0-9.-]+{_PORT})/(?P<name>[a-z0-9._/-]+):(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})"
    r"(?:@sha256:[0-9a-f]{64})?"
)
_LOOPBACK: Final = re.compile(rf"(localhost|127\.0\.0\.1){_PORT}")
_HOST: Final = r"[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*\.?"
_REALM: Final = re.compile(rf"(https://{_HOST}{_PORT}|http://{_LOOPBACK.pattern}(?=/))(/[!$-;=@-~]*)?")
"""The URL that issues tokens. It has no query of its own, and no character that a request cannot carry."""
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""Characters that a token may have in a header (RFC 6750, section 2.1)."""
_CHALLENGE: Final = re.compile(r'(\w+)="([^"]*)"')
_MANIFESTS: Final = ", ".join(
    [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ]
)


class Refused(Exception):
    """What was asked for cannot be had; a sentence."""


def by_digest(reference: str) -> str:
    """`registry/name:tag` with the digest of what the tag leads to now; a digest that it has is replaced.

    Raises:
        Refused: it is no such reference, or the registry has no such tag.
        OSError: no registry was reached.
    """
    parts = _REFERENCE.fullmatch(reference)
    if parts is None:
        raise Refused(f"{reference!r} is not of the form registry/name:tag")
    registry, name, tag = parts["registry"], parts["name"], parts["tag"]
    manifest = _manifest(registry, name, tag)
    return f"{registry}/{name}:{tag}@sha256:{hashlib.sha256(manifest).hexdigest()}"


def _manifest(registry: str, name: str, tag: str) -> bytes:
    """The bytes that a tag leads to (https://github.com/opencontainers/distribution-spec)."""
    host = "registry-1.docker.io" if registry == "docker.io" else registry
    scheme = "http" if _LOOPBACK.fullmatch(host) else "https"
    url, headers = f"{scheme}://{host}/v2/{name}/manifests/{tag}", {"Accept": _MANIFESTS}
    try:
        try:
            return _get(url, headers)
        except HTTPError as error:
            if error.code != 401:
                raise
            token = _token(error.headers.get("WWW-Authenticate", ""))
        return _get(url, {**headers, "Authorization": f"Bearer {token}"})
    except HTTPError as error:
        raise Refused(f"{registry} answered HTTP {error.code} when asked for {name}:{tag}") from error


def _token(challenge: str) -> str:
    """What a registry wants of whoever has no account (https://distribution.github.io/distribution/spec/auth/token/)."""
    asked = dict(_CHALLENGE.findall(challenge))
    realm = asked.pop("realm", "")
    if not challenge.lower().startswith("bearer ") or not _REALM.fullmatch(realm):
        raise Refused("the registry requires credentials, and only anonymous access is supported")
    answered = _get(f"{realm}?{urlencode(asked)}", {})
    try:
        answer = json.loads(answered)
    except (ValueError, RecursionError):
        answer = None
    token = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise Refused("the registry's token service did not answer with a token")
    return token


def _get(url: str, headers: dict[str, str]) -> bytes:
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as answer:
        body: bytes = answer.read(MOST_BYTES + 1)
        told = answer.headers.get("Docker-Content-Digest")
    if len(body) > MOST_BYTES:
        raise Refused(f"{url} answered more than {MOST_BYTES:,} bytes")
    if told is not None and told != f"sha256:{hashlib.sha256(body).hexdigest()}":
        raise Refused(f"{url} sent a Docker-Content-Digest that does not match its answer")
    return body


def main() -> int:
    """Print the base by its digest, or write it into the Dockerfile; answers the exit code."""
    parser = argparse.ArgumentParser(prog="python3 image/base.py", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into the Dockerfile")
    parser.add_argument("--dockerfile", type=Path, default=DOCKERFILE, help="whose base: the one at the top")
    arguments = parser.parse_args()
    text = arguments.dockerfile.read_text(encoding="utf-8")
    named = _BASE.search(text)
    try:
        if named is None:
            raise Refused(f"{arguments.dockerfile} has no line ARG BASE=registry/name:tag")
        found = by_digest(named[2])
    except Refused as error:
        print(f"image/base.py: {error}", file=sys.stderr)
        return 1
    except (URLError, HTTPException, OSError, ValueError) as error:
        print(f"image/base.py: no registry is reached for {named and named[2]}: {error}", file=sys.stderr)
        return UNREACHABLE
    if arguments.write:
        arguments.dockerfile.write_text(_BASE.sub(rf"\g<1>{found}", text, count=1), encoding="utf-8")
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
