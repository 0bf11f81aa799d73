import pytest

from taskflux.providers.smtp_replies import Deliveries, Kind, Reply
from taskflux.tasks.errors import Permanent, Transient

OK = Reply(250, "2.0.0 Ok", Kind.ACCEPTED)
LATER = Reply(450, "4.2.0 later", Kind.DEFERRED)
QUOTA = Reply(452, "4.2.2 full", Kind.DEFERRED, retry_after=7200.0)
NO = Reply(550, "5.1.1 unknown", Kind.REFUSED)


def of(*wanted: str) -> Deliveries:
    return Deliveries(wanted, "<1@x>")


def test_a_mail_that_reached_somebody_succeeds_and_names_the_refused() -> None:
    deliveries = of("a@x", "b@x")
    deliveries.note({"a@x": OK, "b@x": NO})
    assert deliveries.conclude() == {
        "messageId": "<1@x>",
        "delivered": {"a@x": "250 2.0.0 Ok"},
        "refused": {"b@x": "550 5.1.1 unknown"},
        "deferred": {},
    }


def test_a_deferred_recipient_makes_it_transient_and_progress_says_who_has_it() -> None:
    deliveries = of("a@x", "b@x", "c@x")
    deliveries.note({"a@x": OK, "b@x": LATER, "c@x": NO})
    with pytest.raises(Transient, match="1 of 3 recipients deferred: b@x: 450") as failure:
        deliveries.conclude()
    assert failure.value.progress == deliveries.progress()
    assert failure.value.retry_after is None


def test_the_wait_is_the_shortest_that_any_recipient_asks_for() -> None:
    deliveries = of("a@x", "b@x")
    deliveries.note({"a@x": QUOTA, "b@x": QUOTA})
    assert deliveries.retry_after == 7200.0
    deliveries.note({"a@x": QUOTA, "b@x": LATER})
    assert deliveries.retry_after is None


def test_only_when_nobody_ever_got_it_and_all_refuse_it_is_permanent() -> None:
    deliveries = of("a@x", "b@x")
    deliveries.note({"a@x": NO, "b@x": NO})
    with pytest.raises(Permanent, match="every recipient was refused: a@x: 550") as failure:
        deliveries.conclude()
    assert failure.value.progress == deliveries.progress()


def test_the_next_attempt_asks_the_deferred_only() -> None:
    first = of("a@x", "b@x", "c@x")
    first.note({"a@x": OK, "b@x": LATER, "c@x": NO})
    second = Deliveries.resume(("a@x", "b@x", "c@x"), "<1@x>", first.progress())
    assert second.open == ["b@x"]
    second.note({"b@x": NO})
    assert second.conclude()["delivered"] == {"a@x": "250 2.0.0 Ok"}


def test_a_replay_asks_the_refused_again_but_not_who_has_the_mail() -> None:
    first = of("a@x", "b@x")
    first.note({"a@x": OK, "b@x": NO})
    assert Deliveries.resume(("a@x", "b@x"), "<1.1@x>", first.progress()).open == ["b@x"]


@pytest.mark.parametrize("progress", [{}, {"delivered": None}, {"delivered": [1], "refused": "x"}, {"other": 1}])
def test_progress_of_another_shape_is_none(progress: dict[str, object]) -> None:
    assert Deliveries.resume(("a@x",), "<1@x>", progress).open == ["a@x"]


def test_a_recipient_taken_off_the_mail_is_forgotten() -> None:
    first = of("a@x", "b@x")
    first.note({"a@x": OK, "b@x": NO})
    assert Deliveries.resume(("c@x",), "<1@x>", first.progress()).progress()["delivered"] == {}
