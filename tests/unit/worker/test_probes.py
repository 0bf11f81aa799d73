"""The probes of a process, and clients that would keep them from answering."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from taskflux.worker.process import MOST_CONNECTIONS, Health, ProbeServer
from taskflux.worker.settings import HttpSettings


@pytest.fixture
def port() -> Iterator[int]:
    server = ProbeServer(HttpSettings(host="127.0.0.1", port=0, head_seconds=0.4, max_head_bytes=4096), Health())
    server.start()
    yield server.port
    server.stop()


def connect(port: int, sent: bytes = b"") -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", port), timeout=10)
    peer.sendall(sent)
    return peer


def ended(peer: socket.socket) -> bytes:
    """What comes until the server ends the connection."""
    got = b""
    with suppress(ConnectionResetError), peer:
        while part := peer.recv(65536):
            got += part
    return got


def status_and_problem(got: bytes) -> tuple[int, Any]:
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /livez?" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /livez HTTP/1.1\r\nx: " + b"y" * 10_000, 431),
        (b"GET /livez HTTP/1.1\r\n" + b"x: y\r\n" * 2000, 431),
        (b"GET /livez HTTP/1.1\r\n" + b"x:\r\n" * 200 + b"\r\n", 431),
        (b"POST /livez HTTP/1.1\r\n\r\n", 501),
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET", 408),
        (b"GET /livez HTTP/1.1\r\nhost: x\r\n", 408),
    ],
)
def test_a_head_that_is_too_large_too_slow_or_none_is_refused_with_a_problem(
    port: int, head: bytes, status: int
) -> None:
    told, problem = status_and_problem(ended(connect(port, head)))
    assert told == problem["status"] == status


def test_a_silent_client_is_cut(port: int) -> None:
    assert ended(connect(port)) == b""


@pytest.mark.parametrize(("begin", "drop"), [(b"", b"x"), (b"GET /livez HTTP/1.1\r\n", b"x")])
def test_a_client_that_drips_is_cut(port: int, begin: bytes, drop: bytes) -> None:
    peer = connect(port, begin)
    with suppress(ConnectionError):
        for _ in range(200):
            peer.sendall(drop)
            time.sleep(0.02)
            peer.setblocking(False)
            with suppress(BlockingIOError):
                assert peer.recv(65536).startswith(b"HTTP/1.0 408 ")
                break
            peer.settimeout(10)
        else:
            raise AssertionError("it was never cut")
    peer.close()


def test_silent_clients_do_not_lock_out_a_probe() -> None:
    server = ProbeServer(HttpSettings(host="127.0.0.1", port=0, head_seconds=60), Health())
    server.start()
    silent = [connect(server.port) for _ in range(3 * MOST_CONNECTIONS)]
    assert httpx.get(f"http://127.0.0.1:{server.port}/livez").status_code == 200
    for peer in silent[:MOST_CONNECTIONS]:
        assert ended(peer) == b""
    for peer in silent:
        peer.close()
    server.stop()
