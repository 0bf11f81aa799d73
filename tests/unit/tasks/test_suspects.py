from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import count
from uuid import UUID

import pytest

from taskflux.tasks.decision import Held, Verdict, judge
from taskflux.tasks.states import State


def numbered() -> Callable[[], UUID]:
    numbers = count(1000)
    return lambda: UUID(int=next(numbers))


def verdicts(*held: Held, lost: bool = True, losses_alone: int = 3) -> Mapping[UUID, Verdict]:
    found = judge(held, lost=lost, losses_alone=losses_alone, new_group=numbered())
    assert found.keys() == {each.task for each in held}
    return found


def sizes(found: Mapping[UUID, Verdict]) -> list[int]:
    """How large the groups are."""
    return sorted(Counter(each.group for each in found.values() if each.group is not None).values())


def tasks(number: int, **of_each: bool) -> list[Held]:
    return [Held(UUID(int=place), **of_each) for place in range(number)]


@pytest.mark.parametrize(
    ("number", "expected"), [(2, [1, 1]), (3, [1, 2]), (20, [10, 10]), (21, [10, 11]), (601, [300, 301])]
)
@pytest.mark.parametrize("suspect", [False, True])
def test_the_tasks_of_a_lost_worker_are_halved(number: int, expected: list[int], suspect: bool) -> None:
    found = verdicts(*tasks(number, suspect=suspect, begun=suspect))
    assert sizes(found) == expected
    assert all(each.decision.state is State.SCHEDULED for each in found.values())
    assert not any(each.alone for each in found.values())


def test_a_loss_that_leads_to_another_attempt_spends_no_attempt() -> None:
    found = verdicts(*tasks(5))
    assert all(each.decision.give_back for each in found.values())


def test_suspects_that_waited_for_their_turn_keep_their_group_and_do_not_count() -> None:
    (ran,), (waited, *_) = tasks(1), (waiting := [Held(UUID(int=7), suspect=True), Held(UUID(int=8), suspect=True)])
    found = verdicts(ran, *waiting)
    assert (found[ran.task].alone, found[waited.task].group, found[waited.task].alone) == (True, None, False)


@pytest.mark.parametrize(("before", "state"), [(0, "scheduled"), (1, "scheduled"), (2, "dead"), (3, "dead")])
def test_a_task_that_ends_its_worker_alone_for_the_third_time_is_dead(before: int, state: str) -> None:
    (found,) = verdicts(Held(UUID(int=1), suspect=True, begun=True, alone=before)).values()
    assert (found.decision.state, found.decision.give_back) == (state, True)
    assert (found.decision.error_class == "WorkerLost") == (state == "dead")


def test_the_number_of_losses_is_a_setting() -> None:
    (found,) = verdicts(Held(UUID(int=1)), losses_alone=1).values()
    assert found.decision.state is State.DEAD


def test_a_worker_that_stopped_normally_leaves_no_suspects() -> None:
    found = verdicts(*tasks(5), Held(UUID(int=9), suspect=True, begun=True, alone=2), lost=False)
    assert sizes(found) == []
    assert {each.decision.state for each in found.values()} == {State.SCHEDULED}
    assert not any(each.loss for each in found.values())


def test_a_task_of_the_policy_hold_is_held_whatever_else_was_lost() -> None:
    found = verdicts(*tasks(3, hold=True), Held(UUID(int=9)))
    assert [found[UUID(int=place)].decision.state for place in range(3)] == [State.UNCERTAIN] * 3
    assert not any(found[UUID(int=place)].decision.give_back for place in range(3))
    assert found[UUID(int=9)].alone is False  # it was not alone


@pytest.mark.parametrize("number", [1, 2, 3, 21, 100])
def test_one_task_that_ends_workers_is_found_in_a_logarithmic_number_of_losses(number: int) -> None:
    killer, group, kills, alone = UUID(int=number // 3), tasks(number), 0, 0
    while True:
        kills += 1
        held = [
            Held(each.task, suspect=kills > 1, begun=kills > 1, alone=alone * (each.task == killer)) for each in group
        ]
        found = verdicts(*held)
        if found[killer].decision.state is State.DEAD:
            break
        alone += found[killer].alone
        group = [each for each in group if found[each.task].group == found[killer].group]
    assert kills <= (number - 1).bit_length() + 3
