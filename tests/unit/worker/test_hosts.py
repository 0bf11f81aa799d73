"""Which names a server answers to."""

from __future__ import annotations

import pytest

from taskflux.worker.hosts import names, refusal

ALLOWED = names("localhost, Api.Example.org:8080,")


def test_names_are_compared_without_port_case_and_final_dot() -> None:
    assert ALLOWED == ("localhost", "api.example.org")
    for host in ("localhost", "LOCALHOST:8080", " localhost. ", "api.example.org", "API.example.org.:443"):
        assert refusal(ALLOWED, [host]) is None, host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8080", "10.1.2.3:8080", "[::1]", "[::1]:8080", "[fe80::1]:1"])
def test_an_address_is_always_answered_since_it_cannot_be_moved(host: str) -> None:
    assert refusal(ALLOWED, [host]) is None


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [""],
        ["attacker.example"],
        ["attacker.example:8080"],
        ["localhost.attacker.example"],
        ["attacker.example:localhost"],
        ["127.0.0.1.attacker.example"],
        ["[::1].attacker.example", "localhost"],
        ["localhost", "attacker.example"],
        ["localhost@attacker.example"],
        ["sub.localhost"],
        ["127.1"],
        ["2130706433"],
        ["\x00localhost"],
    ],
)
def test_any_other_name_is_refused_and_not_quoted(hosts: list[str]) -> None:
    said = refusal(ALLOWED, hosts)
    assert said is not None
    assert "attacker" not in said


def test_without_names_every_name_is_answered() -> None:
    assert refusal(names(""), ["attacker.example"]) is None
    assert refusal(names(" , "), []) is None
