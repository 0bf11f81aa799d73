from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from taskflux.http.tasks import TimelineEntry, parse_timeline
from taskflux.tasks.decision import Decision
from taskflux.tasks.states import Event, State
from tests.integration.store.scene import TYPE, Scene, succeeded

START = datetime(2026, 11, 22, tzinfo=UTC)
FULL = 32


def entry(place: int, event: str, state: str, attempt: int = 0, note: str = "") -> str:
    at = (START + timedelta(seconds=place)).isoformat().replace("+00:00", "Z")
    return f"{at}|{event}|{state}|{attempt}|1|{note}"


def life(attempts: int, workers: int = 1) -> list[str]:
    """A task that is tried again and again."""
    entries = [entry(0, "accepted", "scheduled")]
    for attempt in range(1, attempts + 1):
        worker = f"process-email@host-{attempt % workers}:1"
        entries.append(entry(len(entries), "published", "queued", attempt - 1))
        entries.append(entry(len(entries), "claimed", "running", attempt, worker))
        entries.append(entry(len(entries), "retry", "scheduled", attempt, "Transient: later"))
    return entries


async def add(scene: Scene, entries: list[str]) -> tuple[list[str], list[TimelineEntry]]:
    """The timeline after these were added one by one, as it is stored and as it is read."""
    kept: list[str] = []
    for each in entries:
        (row,) = await scene.sql("SELECT timeline_add($1, $2) AS timeline", kept, each)
        kept = row["timeline"]
        assert len(kept) <= FULL
    return kept, parse_timeline(kept)


def counted(timeline: list[TimelineEntry]) -> int:
    return sum(each.get("times", 1) for each in timeline)


async def test_up_to_32_entries_are_kept_unchanged(scene: Scene) -> None:
    entries = life(11)[:FULL]
    assert (await add(scene, entries))[0] == entries


async def test_the_33rd_folds_repeats_between_the_first_and_the_last(scene: Scene) -> None:
    entries = life(11)[: FULL + 1]
    kept, timeline = await add(scene, entries)
    assert kept[0] == entries[0]
    assert kept[-9:] == entries[-9:]
    assert len(kept) == 1 + 3 + 9
    folded = {each["event"]: each for each in timeline[1:4]}
    assert {event: each.get("times") for event, each in folded.items()} == {"published": 8, "claimed": 8, "retry": 7}
    assert counted(timeline) == len(entries)


@pytest.mark.parametrize("entries", [33, 34, 40, 41, 200])
async def test_the_counts_add_up_however_often_it_is_folded(entries: int, scene: Scene) -> None:
    lived = life(entries // 3 + 1)[:entries]
    kept, timeline = await add(scene, lived)
    assert counted(timeline) == entries
    assert (kept[0], kept[-1]) == (lived[0], lived[-1])


async def test_a_task_that_ran_on_a_hundred_pods_has_one_line_for_its_claims(scene: Scene) -> None:
    lived = life(100, workers=100)
    _, timeline = await add(scene, lived)
    assert counted(timeline) == len(lived)
    assert sum(each["event"] == "claimed" and "times" in each for each in timeline) == 1


async def test_each_cause_keeps_a_line_of_its_own(scene: Scene) -> None:
    entries = [entry(0, "accepted", "scheduled")]
    causes = ("Transient: a", "Crash: b", "Ambiguous: c")
    entries += [entry(n, "retry", "scheduled", n, causes[n % 3]) for n in range(1, 60)]
    _, timeline = await add(scene, entries)
    middle = timeline[1 : -len(timeline) + 4]
    assert {each.get("note") for each in middle} == set(causes)
    assert counted(timeline) == 60


async def test_a_folded_line_has_the_first_time_the_last_note_and_the_latest_attempt(scene: Scene) -> None:
    entries = [entry(0, "accepted", "scheduled")]
    entries += [entry(n, "retry", "scheduled", n, f"Transient: try {n}") for n in range(1, FULL + 1)]
    _, timeline = await add(scene, entries)
    # 32 entries are folded before the 33rd: all but the first and the last eight.
    assert timeline[1] == {
        "at": "2026-11-22T00:00:01Z",
        "event": "retry",
        "state": "scheduled",
        "attempt": 23,
        "times": 23,
        "note": "Transient: try 23",
    }


async def test_with_more_causes_than_fit_the_oldest_are_dropped(scene: Scene) -> None:
    entries = [entry(0, "accepted", "scheduled")]
    entries += [entry(n, "retry", "scheduled", n, f"Cause{n}: x") for n in range(1, 60)]
    kept, timeline = await add(scene, entries)
    assert (kept[0], kept[-1]) == (entries[0], entries[-1])
    assert timeline[1].get("note") != "Cause1: x"


async def test_a_real_task_of_many_attempts_keeps_its_timeline_short(scene: Scene) -> None:
    (task,) = await scene.accepted(max_attempts=100)
    worker = await scene.worker()
    version = 1
    for attempt in range(20):
        (claim,) = await worker.claim(TYPE, {task: version})
        reason = f"no answer {attempt}"
        retry = Decision(Event.RETRY, State.SCHEDULED, error_class="Transient", reason=reason)
        await scene.settle(worker, claim, retry)
        version = claim.version
    (claim,) = await worker.claim(TYPE, {task: version})
    await scene.settle(worker, claim, succeeded(None))
    timeline = await scene.timeline(task)
    assert counted(timeline) == 1 + 2 * 21
    assert len(timeline) <= FULL
    assert (timeline[0]["event"], timeline[-1]["event"]) == ("accepted", "succeeded")
    assert timeline[-1]["at"].endswith("Z")
    assert datetime.fromisoformat(timeline[-1]["at"]) > START - timedelta(days=365)
