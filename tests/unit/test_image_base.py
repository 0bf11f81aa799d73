"""`image/base.py`, which asks a registry for the digest of the image's base: here one on the loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from taskflux.local.ports import free_port

ROOT = Path(__file__).parents[2]
INDEX = json.dumps(
    {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}
).encode()
DIGEST = f"sha256:{hashlib.sha256(INDEX).hexdigest()}"
DOCKERFILE = "# The base\nARG BASE={base}\n\nFROM ${{BASE}} AS dependencies\nARG BASE\n"


@dataclass
class Registry:
    """One image, `library/python:3.12-slim`, for whoever has fetched a token for it."""

    port: int = 0
    told: str | None = DIGEST
    token: bytes = b'{"token": "for-python"}'
    realm: str = "http://127.0.0.1:{port}/token"
    asked: list[str] = field(default_factory=list)

    @property
    def base(self) -> str:
        return f"127.0.0.1:{self.port}/library/python:3.12-slim"


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            registry.asked.append(self.path)
            asked = urlsplit(self.path)
            if asked.path == "/token":
                scope = parse_qs(asked.query)["scope"]
                self.answer(200 if scope == ["repository:library/python:pull"] else 403, registry.token)
            elif self.headers.get("Authorization") != "Bearer for-python":
                realm = f'Bearer realm="{registry.realm.format(port=registry.port)}",service="registry"'
                self.answer(401, b"{}", {"WWW-Authenticate": f'{realm},scope="repository:library/python:pull"'})
            elif asked.path == "/v2/library/python/manifests/3.12-slim" and "image.index" in self.headers["Accept"]:
                self.answer(200, INDEX, {"Docker-Content-Digest": registry.told} if registry.told else {})
            else:
                self.answer(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    registry.port = server.server_address[1]
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield registry
    server.shutdown()
    server.server_close()


def run(file: Path, base: str, *words: str) -> subprocess.CompletedProcess[str]:
    file.write_text(DOCKERFILE.format(base=base))
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    command = [sys.executable, str(ROOT / "image/base.py"), "--dockerfile", str(file), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_the_base_is_printed_by_its_digest_and_the_dockerfile_keeps_its_tag(registry: Registry, tmp_path: Path) -> None:
    done = run(tmp_path / "Dockerfile", registry.base)
    assert (done.returncode, done.stdout) == (0, f"{registry.base}@{DIGEST}\n"), done.stderr
    assert (tmp_path / "Dockerfile").read_text() == DOCKERFILE.format(base=registry.base)


@pytest.mark.parametrize("before", ["", f"@sha256:{'0' * 64}"])
def test_the_digest_is_written_where_the_base_is_named_and_nowhere_else(
    registry: Registry, tmp_path: Path, before: str
) -> None:
    done = run(tmp_path / "Dockerfile", registry.base + before, "--write")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "Dockerfile").read_text() == DOCKERFILE.format(base=f"{registry.base}@{DIGEST}")


def test_the_digest_is_that_of_the_answer_whether_the_registry_tells_one_or_not(
    registry: Registry, tmp_path: Path
) -> None:
    registry.told = None
    assert run(tmp_path / "Dockerfile", registry.base).stdout.endswith(f"@{DIGEST}\n")
    registry.told = f"sha256:{'1' * 64}"
    done = run(tmp_path / "Dockerfile", registry.base, "--write")
    assert (done.returncode, done.stdout) == (1, "")
    assert "a Docker-Content-Digest that does not match its answer" in done.stderr
    assert "@" not in (tmp_path / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("{host}/library/python:no-such-tag", "HTTP 404"),
        ("{host}/library/other:3.12-slim", "HTTP 404"),
        ("python", "registry/name:tag"),
        ("{host}/library/python", "registry/name:tag"),
        ("127.0.0.1:99999/library/python:3.12-slim", "registry/name:tag"),
    ],
)
def test_a_base_that_there_is_not_is_said_in_a_sentence(
    registry: Registry, tmp_path: Path, base: str, said: str
) -> None:
    done = run(tmp_path / "Dockerfile", base.format(host=f"127.0.0.1:{registry.port}"), "--write")
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "@" not in (tmp_path / "Dockerfile").read_text()


@pytest.mark.parametrize(
    "token",
    [
        b"<html>",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b'{"token": null}',
        b'{"token": 7}',
        b'{"token": "a\\nb"}',
    ],
)
def test_an_answer_of_the_token_service_without_a_token_is_not_an_unreachable_registry(
    registry: Registry, tmp_path: Path, token: bytes
) -> None:
    registry.token = token
    done = run(tmp_path / "Dockerfile", registry.base, "--write")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the registry's token service did not answer with a token" in done.stderr
    assert "Traceback" not in done.stderr
    assert "@" not in (tmp_path / "Dockerfile").read_text()


@pytest.mark.parametrize(
    "realm",
    [
        "http://localhost.evil.test:{port}/token",
        "http://127.evil.test:{port}/token",
        "http://localhost:{port}@127.0.0.2/token",
        "http://localhost",
        "https:// 127.0.0.1:{port}/token",
        "ftp://127.0.0.1:{port}/token",
        "http://127.0.0.1:{port}/token\x7f",
        "http://127.0.0.1:{port}/tok\xe9n",
        "http://127.0.0.1:{port}/token?scope=all",
        "http://127.0.0.1:{port}/token#all",
        "http://127.0.0.1:99999/token",
        "https://127.0.0.1:port/token",
        "https://registry..test/token",
        "https://[::1/token",
        "https://?",
    ],
)
def test_a_token_is_asked_for_over_tls_or_on_the_loopback_only(registry: Registry, tmp_path: Path, realm: str) -> None:
    registry.realm = realm
    done = run(tmp_path / "Dockerfile", registry.base)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the registry requires credentials, and only anonymous access is supported" in done.stderr


def test_without_a_registry_nothing_is_invented(tmp_path: Path) -> None:
    base = f"127.0.0.1:{free_port()}/library/python:3.12-slim"
    done = run(tmp_path / "Dockerfile", base, "--write")
    assert (done.returncode, done.stdout) == (75, "")
    assert "no registry is reached" in done.stderr
    assert (tmp_path / "Dockerfile").read_text() == DOCKERFILE.format(base=base)


def test_a_local_build_takes_the_tag() -> None:
    (line,) = (each for each in (ROOT / "Dockerfile").read_text().splitlines() if each.startswith("ARG BASE="))
    assert line == "ARG BASE=docker.io/library/python:3.12-slim"
