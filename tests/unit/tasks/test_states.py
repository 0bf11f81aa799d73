from __future__ import annotations

from itertools import product

import pytest

from taskflux.tasks.states import TRANSITIONS, Event, State, allowed

S = State
TERMINAL = {S.SUCCEEDED, S.DEAD, S.CANCELLED}

# The design's table, row by row; whatever is missing here must not happen.
ROWS = {
    (Event.PUBLISHED, S.SCHEDULED, S.QUEUED),
    (Event.CLAIMED, S.SCHEDULED, S.RUNNING),
    (Event.CLAIMED, S.QUEUED, S.RUNNING),
    (Event.SUCCEEDED, S.RUNNING, S.SUCCEEDED),
    (Event.RETRY, S.RUNNING, S.SCHEDULED),
    (Event.RELEASED, S.RUNNING, S.SCHEDULED),
    (Event.DIED, S.RUNNING, S.DEAD),
    (Event.DIED, S.SCHEDULED, S.DEAD),
    (Event.HELD, S.RUNNING, S.UNCERTAIN),
    (Event.LEASE_EXPIRED, S.RUNNING, S.SCHEDULED),
    (Event.LEASE_EXPIRED, S.RUNNING, S.UNCERTAIN),
    (Event.RECORD_LOST, S.QUEUED, S.SCHEDULED),
    (Event.CANCELLED, S.SCHEDULED, S.CANCELLED),
    (Event.CANCELLED, S.QUEUED, S.CANCELLED),
    (Event.REPLAYED, S.DEAD, S.SCHEDULED),
    (Event.REPLAYED, S.CANCELLED, S.SCHEDULED),
    (Event.RESOLVED_SUCCEEDED, S.UNCERTAIN, S.SUCCEEDED),
    (Event.RESOLVED_RESEND, S.UNCERTAIN, S.SCHEDULED),
    (Event.RESOLVED_DEAD, S.UNCERTAIN, S.DEAD),
    (Event.LATE_SUCCESS, S.SCHEDULED, S.SUCCEEDED),
    (Event.LATE_SUCCESS, S.QUEUED, S.SUCCEEDED),
    (Event.LATE_SUCCESS, S.UNCERTAIN, S.SUCCEEDED),
    (Event.LATE_DEATH, S.SCHEDULED, S.DEAD),
    (Event.LATE_DEATH, S.QUEUED, S.DEAD),
    (Event.LATE_DEATH, S.UNCERTAIN, S.DEAD),
}


def test_exactly_the_rows_of_the_design_are_allowed() -> None:
    assert {row for row in product(Event, State, State) if allowed(*row)} == ROWS


def test_every_event_has_its_row() -> None:
    assert TRANSITIONS.keys() == set(Event)


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_nothing_leaves_a_terminal_state_but_a_replay(state: State) -> None:
    assert {event for event, before, _ in ROWS if before is state} <= {Event.REPLAYED}


@pytest.mark.parametrize("state", sorted(set(State) - TERMINAL))
def test_every_other_state_has_a_way_to_a_terminal_one(state: State) -> None:
    reached, before = {state}, set[State]()
    while reached != before:
        before = set(reached)
        reached |= {after for _, source, after in ROWS if source in before}
    assert reached & TERMINAL


def test_only_a_claim_leads_to_running() -> None:
    assert {event for event, _, after in ROWS if after is S.RUNNING} == {Event.CLAIMED}
