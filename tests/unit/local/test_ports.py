import socket
from pathlib import Path

from taskflux.local.ports import Ports, free_port, is_free


def test_a_port_in_use_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not is_free(listener.getsockname()[1])


def test_every_request_for_a_free_port_gets_a_different_one() -> None:
    given = [free_port() for _ in range(500)]
    assert len(set(given)) == len(given)
    assert all(is_free(port) for port in given)


def test_the_usual_port_is_taken_where_it_is_free(tmp_path: Path) -> None:
    usual = free_port()
    assert Ports(tmp_path / "ports.json").choose("postgres", usual) == usual


def test_the_next_free_port_stands_in_for_one_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        chosen = Ports(tmp_path / "ports.json").choose("postgres", taken)
    assert chosen != taken


def test_no_port_is_given_away_twice(tmp_path: Path) -> None:
    ports = Ports(tmp_path / "ports.json")
    usual = free_port()
    assert ports.choose("relay", usual) != ports.choose("dlq-sink", usual)


def test_a_restart_finds_its_ports_again(tmp_path: Path) -> None:
    first = Ports(tmp_path / "ports.json")
    chosen = first.choose("inbox", free_port())
    first.save()
    assert Ports(tmp_path / "ports.json").choose("inbox", free_port()) == chosen


def test_a_file_that_a_crash_cut_short_counts_as_empty(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    file.write_text('{"inbox": 80')
    usual = free_port()
    assert Ports(file).choose("inbox", usual) == usual
