import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from subprocess import PIPE

import pytest

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


def test_two_that_choose_before_their_servers_listen_get_different_ports(tmp_path: Path) -> None:
    usual = free_port()
    first, second = (Ports(tmp_path / name) for name in ("first.json", "second.json"))
    assert first.choose("postgres", usual) == usual
    assert second.choose("postgres", usual) != usual
    del first
    assert Ports(tmp_path / "third.json").choose("postgres", usual) == usual


def test_processes_that_start_together_choose_different_ports(tmp_path: Path) -> None:
    usual = free_port()
    code = (
        "import sys; from pathlib import Path; from taskflux.local.ports import Ports; ports = Ports(Path(sys.argv[1]))"
        "; print(*[ports.choose(name, int(sys.argv[2])) for name in 'abc'], flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", code]
    started = [
        subprocess.Popen([*arguments, str(tmp_path / str(number)), str(usual)], stdin=PIPE, stdout=PIPE, text=True)
        for number in range(3)
    ]
    chosen = [port for process in started if process.stdout for port in process.stdout.readline().split()]
    for process in started:
        process.communicate()
    assert (len(chosen), len(set(chosen))) == (9, 9)


@pytest.mark.parametrize("place", ["missing", "a file", "a link"])
def test_without_a_place_for_reservations_ports_are_chosen_all_the_same(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    directory = tmp_path / "temporary" / f"taskflux-ports-{os.geteuid()}"
    usual = free_port()
    if place != "missing":
        directory.parent.mkdir()
    if place == "a file":
        directory.write_text("")
    if place == "a link":
        directory.mkdir()
        (directory / str(usual)).symlink_to(tmp_path / "elsewhere")
    assert Ports(tmp_path / "ports.json").choose("postgres", usual) == usual
    assert not (tmp_path / "elsewhere").exists()


def test_a_restart_finds_its_ports_again(tmp_path: Path) -> None:
    first = Ports(tmp_path / "ports.json")
    chosen = first.choose("inbox", free_port())
    first.save()
    del first  # the process that had them has ended
    assert Ports(tmp_path / "ports.json").choose("inbox", free_port()) == chosen


def test_a_file_that_a_crash_cut_short_counts_as_empty(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    file.write_text('{"inbox": 80')
    usual = free_port()
    assert Ports(file).choose("inbox", usual) == usual
