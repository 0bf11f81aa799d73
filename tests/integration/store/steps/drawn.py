"""What hypothesis draws: steps for the state machine, and programs for actors that run at once."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

from taskflux.store.tasks import Resolution
from taskflux.tasks.states import State
from tests.integration.store.steps.claims import Beat, Claim, EndLease, Reclaim, Settle, Stray
from tests.integration.store.steps.publishing import Confirm, Expire, Insert, LookForDue, LookForExpired, Promise, Wait
from tests.integration.store.steps.tasks import Bury, Cancel, Hold, List, Measure, Replay, Report, Resolve, ResolveEarly
from tests.integration.store.steps.upkeep import Audit, LookForLapsed, Requeue, Sweep
from tests.integration.store.steps.world import HOLD, OUTCOMES, RESEND, Step

WORKERS: Final = 3
CROWD: Final = 12
"""Tasks that exist when all actors begin."""

places = st.sampled_from([0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5, 6, 7])
batches = st.lists(places, min_size=1, max_size=3).map(tuple)
types = st.sampled_from([RESEND, HOLD])
workers = st.integers(0, WORKERS - 1)
relays = st.integers(0, 1)
enders = st.sampled_from(["worker", "silent", "overdue", "supervisor"])
outcomes = st.lists(st.tuples(places, st.sampled_from(list(OUTCOMES))), min_size=1, max_size=3).map(tuple)
claims = st.builds(
    Claim,
    workers,
    batches,
    st.sampled_from([None, None, None, RESEND, HOLD]),
    st.sampled_from([True, True, True, False]),
)

INSERTS: Final[st.SearchStrategy[Step]] = st.builds(
    Insert,
    st.lists(types, min_size=1, max_size=2).map(tuple),
    st.sampled_from(["promised", "left", "later"]),
    st.sampled_from([False, False, True]),
)
LOOKS: Final[st.SearchStrategy[Step]] = st.one_of(
    st.builds(LookForDue, relays, types),
    st.builds(LookForExpired, relays),
    st.builds(LookForLapsed),
    st.builds(Audit),
    st.builds(Wait),
    st.builds(Beat, workers),
    st.builds(Beat, workers),
    st.builds(Reclaim, workers, batches),
    st.builds(Stray, workers, places),
    st.builds(Bury),
    st.builds(ResolveEarly),
    st.builds(List, st.none() | st.sampled_from(State), st.none() | types),
    st.builds(Measure),
)
"""What an actor or a person reads, and what does not meet another statement."""
MOVES: Final[st.SearchStrategy[Step]] = st.one_of(
    st.builds(Promise, relays, types, st.sampled_from([0.0, 3600.0])),
    st.builds(Confirm, batches),
    st.builds(Confirm, batches),
    claims,
    claims,
    claims,
    st.builds(Settle, outcomes),
    st.builds(Settle, outcomes),
    st.builds(EndLease, workers, enders),
    st.builds(Sweep),
    st.builds(Requeue, batches),
    st.builds(Cancel, places),
    st.builds(Expire, relays),
    st.builds(Replay, places),
    st.builds(Resolve, places, st.sampled_from(Resolution)),
    st.builds(Report, places, st.sampled_from([0, 0, 0, 1])),
)
"""One statement each: any of them may meet any other."""
HOLDS: Final = st.builds(Hold, places, st.sampled_from(["tasks", "due", "claims"]))


# All actors at once -------------------------------------------------------------------------------------------------


def _batch(start: int, step: int, count: int) -> tuple[int, ...]:
    return tuple((start + step * number) % (2 * CROWD) for number in range(count))


def _settled(batch: tuple[int, ...], names: list[str]) -> tuple[tuple[int, str], ...]:
    return tuple((place, names[number % len(names)]) for number, place in enumerate(batch))


shuffled = st.builds(_batch, st.integers(0, 2 * CROWD - 1), st.sampled_from([1, 5, 7, 11, 13]), st.integers(1, CROWD))
"""The places of a batch, in any order."""
any_task = st.integers(0, CROWD - 1)


def _program(*steps: st.SearchStrategy[Step]) -> st.SearchStrategy[list[Step]]:
    return st.lists(st.one_of(*steps), min_size=6, max_size=14)


def _relay(number: int) -> st.SearchStrategy[list[Step]]:
    promise = st.builds(Promise, st.just(number))
    return _program(promise, promise, st.builds(Confirm, shuffled), st.builds(Expire, st.just(number)))


def _worker(number: int) -> st.SearchStrategy[list[Step]]:
    claim = st.builds(Claim, st.just(number), shuffled, st.none(), st.sampled_from([True, True, False]))
    names = st.lists(st.sampled_from(list(OUTCOMES)), min_size=1, max_size=4)
    settle = st.builds(Settle, st.builds(_settled, shuffled, names))
    return _program(claim, claim, settle, settle, st.builds(Beat, st.just(number)))


PROGRAMS: Final = st.fixed_dictionaries(
    {
        "ingest": _program(
            st.builds(Confirm, shuffled),
            st.builds(Insert, st.just((RESEND,)), st.sampled_from(["promised", "left"]), st.booleans()),
        ),
        **{f"relay {number}": _relay(number) for number in range(2)},
        **{f"worker {number}": _worker(number) for number in range(WORKERS)},
        "canceller": _program(st.builds(Cancel, any_task)),
        "replayer": _program(
            st.builds(Bury),
            st.builds(Replay, any_task),
            st.builds(Resolve, any_task, st.sampled_from(Resolution)),
            st.builds(Report, any_task),
            st.builds(ResolveEarly),
        ),
        "sweeper": _program(
            st.builds(EndLease, workers, enders),
            st.builds(Sweep),
            st.builds(LookForLapsed),
            st.builds(Audit),
            st.builds(Requeue, shuffled),
        ),
    }
)
LOCKS: Final = st.lists(
    st.builds(
        Hold, any_task, st.sampled_from(["tasks", "tasks", "due", "claims"]), st.sampled_from([0.0, 0.002, 0.01])
    ),
    min_size=4,
    max_size=12,
)
