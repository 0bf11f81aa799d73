"""The probes of a process, and clients that would keep them from answering."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest

from taskflux.telemetry.outages import Link
from taskflux.worker.process import MOST_CONNECTIONS, Health, ProbeServer
from taskflux.worker.settings import HttpSettings


def server(head_seconds: float) -> ProbeServer:
    """One that is connected to, but answers only once it is started."""
    return ProbeServer(HttpSettings(host="127.0.0.1", port=0, head_seconds=head_seconds, max_head_bytes=4096), Health())


@contextmanager
def started(server: ProbeServer) -> Iterator[None]:
    server.start()
    try:
        yield
    finally:
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
    ],
)
def test_a_head_that_is_too_large_or_invalid_is_refused_with_a_problem(head: bytes, status: int) -> None:
    patient = server(3600.0)
    with started(patient):
        told, problem = status_and_problem(ended(connect(patient.port, head)))
    assert told == problem["status"] == status


@pytest.mark.parametrize("head", [b"GET", b"GET /livez HTTP/1.1\r\nhost: x\r\n"])
def test_a_head_that_is_too_slow_is_refused_with_a_problem(head: bytes) -> None:
    hasty = server(0.2)
    peer = connect(hasty.port, head)
    with started(hasty):
        told, problem = status_and_problem(ended(peer))
    assert told == problem["status"] == 408


def test_a_silent_client_is_cut() -> None:
    hasty = server(0.2)
    with started(hasty):
        assert ended(connect(hasty.port)) == b""


@pytest.mark.parametrize(("begin", "drop"), [(b"", b"x"), (b"GET /livez HTTP/1.1\r\n", b"x")])
def test_a_client_that_drips_is_cut(begin: bytes, drop: bytes) -> None:
    hasty = server(0.2)
    peer = connect(hasty.port, begin + drop)
    cut = threading.Event()

    def drip() -> None:
        with suppress(OSError):
            while not cut.wait(0.02):
                peer.sendall(drop)

    dripping = threading.Thread(target=drip)
    dripping.start()
    with started(hasty), peer:
        try:
            assert peer.recv(65536).startswith(b"HTTP/1.0 408 ")
        finally:
            cut.set()
            dripping.join()


def test_readyz_says_why_kafka_cannot_be_reached_and_stays_ready() -> None:
    health, kafka = Health(), Link("Kafka")
    server = ProbeServer(HttpSettings(host="127.0.0.1", port=0), health)
    server.start()
    address = f"http://127.0.0.1:{server.port}/readyz"
    kafka.failed("refused", "nothing listens at köln:1", "start it")
    starting = httpx.get(address)
    health.started = True
    waiting = httpx.get(address)
    kafka.works()
    well = httpx.get(address)
    server.stop()
    said = "waiting for Kafka: nothing listens at köln:1"
    assert (starting.status_code, starting.text) == (503, f"starting\n{said}")
    assert (waiting.status_code, waiting.text) == (200, f"ok\n{said}")
    assert (well.status_code, well.text) == (200, "ok")


def test_a_worker_whose_threads_are_all_stuck_is_not_ready_and_after_a_while_to_be_restarted() -> None:
    health, stuck = Health(), 0.0
    health.started, health.stuck_for, health.patience = True, lambda: stuck, 60.0
    probes = ProbeServer(HttpSettings(host="127.0.0.1", port=0), health)
    said = "all threads of the handler are stuck: it takes no tasks"
    expected = {0.0: (200, "ok", 200, "ok"), 1.0: (200, "ok", 503, said), 60.0: (503, said, 503, said)}
    with started(probes):
        for stuck, answers in expected.items():  # noqa: B007 - `health` reads it
            livez, readyz = (httpx.get(f"http://127.0.0.1:{probes.port}/{name}") for name in ("livez", "readyz"))
            assert (livez.status_code, livez.text, readyz.status_code, readyz.text) == answers


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_the_host_of_all_addresses_is_answered_over_both_versions_of_ip() -> None:
    probes = ProbeServer(HttpSettings(host="::", port=0), Health())
    probes.start()
    try:
        answers = [httpx.get(f"http://{host}:{probes.port}/livez").status_code for host in ("[::1]", "127.0.0.1")]
    finally:
        probes.stop()
    assert answers == [200, 200]


def test_silent_clients_do_not_lock_out_a_probe() -> None:
    patient = server(3600.0)
    with started(patient):
        silent = [connect(patient.port) for _ in range(3 * MOST_CONNECTIONS)]
        assert httpx.get(f"http://127.0.0.1:{patient.port}/livez", timeout=60).status_code == 200
        for peer in silent[:MOST_CONNECTIONS]:
            assert ended(peer) == b""
        for peer in silent:
            peer.close()
