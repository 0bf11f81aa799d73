from __future__ import annotations

import pytest

from taskflux.http.tasks import TimelineEntry, parse_timeline

AT = "2026-11-22T10:00:00.000001Z"


def parse_entry(text: str) -> TimelineEntry:
    (entry,) = parse_timeline([text])
    return entry


def test_an_entry_says_when_what_and_which_attempt() -> None:
    assert parse_entry(f"{AT}|claimed|running|2|1|worker@host:7") == {
        "at": AT,
        "event": "claimed",
        "state": "running",
        "attempt": 2,
        "note": "worker@host:7",
    }


def test_a_folded_entry_says_how_many_it_counts() -> None:
    assert parse_entry(f"{AT}|retry|scheduled|9|40|Transient: later")["times"] == 40


def test_an_entry_with_nothing_to_say_has_neither_note_nor_times() -> None:
    assert parse_entry(f"{AT}|accepted|scheduled|0|1|").keys() == {"at", "event", "state", "attempt"}


def test_a_note_keeps_its_colons_and_spaces() -> None:
    assert parse_entry(f"{AT}|died|dead|3|1|Permanent: 550 5.1.1: no: such user")["note"] == (
        "Permanent: 550 5.1.1: no: such user"
    )


def test_the_oldest_entry_is_first() -> None:
    entries = [f"{AT}|accepted|scheduled|0|1|", f"{AT}|published|queued|0|1|"]
    assert [entry["event"] for entry in parse_timeline(entries)] == ["accepted", "published"]


def test_each_entry_names_the_trace_of_its_task() -> None:
    entries = [f"{AT}|accepted|scheduled|0|1|", f"{AT}|published|queued|0|1|"]
    assert [entry["traceId"] for entry in parse_timeline(entries, "4bf9")] == ["4bf9", "4bf9"]


@pytest.mark.parametrize("text", ["", "accepted", f"{AT}|accepted|scheduled|zero|1|"])
def test_what_is_not_an_entry_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_entry(text)
