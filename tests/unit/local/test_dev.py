from typing import Any

from taskflux.local.dev import duration, timeline

ENTRIES: list[dict[str, Any]] = [
    {"at": "2026-01-01T00:00:00.000Z", "state": "scheduled", "event": "accepted"},
    {"at": "2026-01-01T00:00:00.020+00:00", "state": "queued", "event": "published"},
    {"at": "2026-01-01T00:00:00.310+00:00", "state": "running", "event": "claimed", "attempt": 1},
    {"at": "2026-01-01T00:00:01.5Z", "state": "succeeded", "event": "succeeded", "note": "kept as 4"},
]


def test_a_timeline_reads_as_seconds_since_it_began() -> None:
    assert timeline(ENTRIES) == [
        "   0.000 s  scheduled  accepted",
        "   0.020 s  queued     published",
        "   0.310 s  running    claimed · attempt 1",
        "   1.500 s  succeeded  succeeded · kept as 4",
    ]


def test_it_tells_how_long_a_task_took() -> None:
    assert duration({"timeline": ENTRIES}) == "1.50 s"
    assert duration({}) == ""
