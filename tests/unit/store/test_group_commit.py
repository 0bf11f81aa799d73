from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest

from taskflux.store import errors
from taskflux.store.errors import RefusedData, SchemaTooOld, StoreBusy, StoreError, StoreUnavailable
from taskflux.store.group_commit import GroupCommit
from taskflux.telemetry.instruments import registry

SIZE, BUCKETS = "taskflux_batch_size", ("1.0", "2.0", "5.0")


class Table:
    """Writes what it is given when the test says so, and fails as the test says."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.entered = asyncio.Semaphore(0)
        self.troubles: list[BaseException] = []
        self.bad: set[str] = set()
        self.unforeseen: set[str] = set()

    async def write(self, items: Sequence[str]) -> Sequence[str]:
        self.batches.append(list(items))
        self.entered.release()
        await self.open.wait()
        if self.troubles:
            raise self.troubles.pop(0)
        if self.bad.intersection(items):
            raise RefusedData("a value does not fit")
        if self.unforeseen.intersection(items):
            raise TypeError("a bug")
        return [item.upper() for item in items]

    @property
    def written(self) -> list[str]:
        return [item for batch in self.batches for item in batch]


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture(autouse=True)
def _no_patience_for_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(errors, "LAST_PAUSE", 0.002)


def commits(table: Table, **options: object) -> GroupCommit[str, str]:
    return GroupCommit(table.write, **options)  # type: ignore[arg-type]


async def submit(commit: GroupCommit[str, str], item: str) -> str:
    """Items that begin alike do not stand in the same batch."""
    return await commit.submit(item, item[0])


async def begun(table: Table, commit: GroupCommit[str, str], *items: str) -> list[asyncio.Task[str]]:
    """One running statement with the first item, the others waiting for the next."""
    table.open.clear()
    tasks = [asyncio.create_task(submit(commit, items[0]))]
    await table.entered.acquire()
    tasks += [asyncio.create_task(submit(commit, item)) for item in items[1:]]
    await asyncio.sleep(0)
    return tasks


async def test_a_single_request_does_not_wait_for_others(table: Table) -> None:
    assert await submit(commits(table), "a") == "A"
    assert table.batches == [["a"]]


async def test_a_retry_leaves_out_items_whose_callers_have_given_up(table: Table) -> None:
    commit = commits(table, patience=10.0)
    table.open.clear()
    gone, stays = (asyncio.create_task(submit(commit, item)) for item in "ab")
    await table.entered.acquire()
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    table.troubles = [StoreUnavailable("gone")]
    table.open.set()
    assert await stays == "B"
    assert table.batches == [["a", "b"], ["b"]]


async def test_requests_made_meanwhile_share_the_next_statement(table: Table) -> None:
    commit = commits(table)
    tasks = await begun(table, commit, "a", "b", "c", "d")
    table.open.set()
    assert await asyncio.gather(*tasks) == ["A", "B", "C", "D"]
    assert table.batches == [["a"], ["b", "c", "d"]]


async def test_no_batch_exceeds_the_maximum(table: Table) -> None:
    commit = commits(table, max_items=2)
    tasks = await begun(table, commit, "a", "b", "c", "d")
    table.open.set()
    await asyncio.gather(*tasks)
    assert table.batches == [["a"], ["b", "c"], ["d"]]


async def test_the_second_of_two_items_with_one_key_waits_for_the_next_statement(table: Table) -> None:
    commit = commits(table)
    tasks = await begun(table, commit, "x", "a1", "a2", "b1", "a3", "b2")
    table.open.set()
    assert await asyncio.gather(*tasks) == ["X", "A1", "A2", "B1", "A3", "B2"]
    assert table.batches == [["x"], ["a1", "b1"], ["a2", "b2"], ["a3"]]


async def test_items_submitted_together_are_answered_in_their_order(table: Table) -> None:
    commit = commits(table)
    assert await asyncio.gather(*[commit.submit(item, item) for item in "cab"]) == ["C", "A", "B"]
    assert table.batches == [["c", "a", "b"]]


async def test_an_item_given_up_before_the_statement_is_not_written(table: Table) -> None:
    commit = commits(table)
    tasks = await begun(table, commit, "a", "b", "c")
    tasks[1].cancel()
    await asyncio.sleep(0)
    table.open.set()
    assert [await tasks[0], await tasks[2]] == ["A", "C"]
    assert table.batches == [["a"], ["c"]]


async def test_an_item_given_up_during_the_statement_does_not_affect_others(table: Table) -> None:
    commit = commits(table)
    first = await begun(table, commit, "a")
    rest = [asyncio.create_task(submit(commit, item)) for item in "bc"]
    await asyncio.sleep(0)
    table.open.set()
    await first[0]
    await table.entered.acquire()
    table.open.clear()
    third = asyncio.create_task(submit(commit, "d"))
    await asyncio.sleep(0)
    for task in (rest[0], first[0]):
        task.cancel()
    table.open.set()
    assert [await rest[1], await third] == ["C", "D"]
    assert sorted(table.written) == ["a", "b", "c", "d"]


async def test_if_all_callers_have_given_up_no_statement_is_run(table: Table) -> None:
    commit = commits(table)
    tasks = await begun(table, commit, "a", "b", "c")
    for task in tasks[1:]:
        task.cancel()
    await asyncio.sleep(0)
    table.open.set()
    assert await tasks[0] == "A"
    assert await submit(commit, "d") == "D"
    assert table.batches == [["a"], ["d"]]


@pytest.mark.parametrize("trouble", [StoreBusy("deadlock"), StoreUnavailable("away"), SchemaTooOld("migrate first")])
async def test_a_retryable_statement_is_retried(trouble: StoreError, table: Table) -> None:
    table.troubles = [trouble] * 5
    assert await submit(commits(table), "a") == "A"
    assert len(table.batches) == 6


async def test_patience_ends_and_says_why(table: Table) -> None:
    table.troubles = [StoreUnavailable("away")] * 10_000
    with pytest.raises(StoreUnavailable, match="away"):
        await submit(commits(table, patience=0.02), "a")
    assert len(table.batches) > 1


async def test_without_patience_the_first_failure_is_the_last(table: Table) -> None:
    table.troubles = [StoreUnavailable("away")]
    with pytest.raises(StoreUnavailable):
        await submit(commits(table, patience=0.0), "a")


async def test_a_permanent_error_fails_the_whole_batch(table: Table) -> None:
    commit = commits(table)
    tasks = await begun(table, commit, "x", "a", "b")
    table.troubles = [StoreError("no permission"), StoreError("no permission")]
    table.open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(answer) for answer in answers] == ["no permission"] * 3
    assert await submit(commit, "c") == "C"


@pytest.mark.parametrize("place", [0, 1, 17, 98, 99])
async def test_a_bad_row_is_halved_out_of_its_batch(place: int, table: Table) -> None:
    items = [chr(0x4E00 + n) for n in range(100)]
    table.bad = {items[place]}
    answers = await asyncio.gather(*map(partial(submit, commits(table)), items), return_exceptions=True)
    assert [n for n, answer in enumerate(answers) if isinstance(answer, RefusedData)] == [place]
    assert len(table.batches) <= 15


async def test_a_batch_of_bad_rows_alone_fails_each_of_them(table: Table) -> None:
    table.bad = set("abcd")
    answers = await asyncio.gather(*map(partial(submit, commits(table)), "abcd"), return_exceptions=True)
    assert all(isinstance(answer, RefusedData) for answer in answers)


@pytest.mark.parametrize("faults", ["c", "ad", "abcd"])
async def test_a_bug_that_one_item_triggers_fails_only_that_item(
    faults: str, table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    table.unforeseen = set(faults)
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*map(partial(submit, commits(table)), "abcd"), return_exceptions=True)
    failed = {item for item, answer in zip("abcd", answers, strict=True) if isinstance(answer, StoreUnavailable)}
    assert failed == set(faults)
    assert all("TypeError" in str(answer) for answer in answers if isinstance(answer, StoreUnavailable))
    assert [type(told.exc_info[1]) for told in caplog.records if told.exc_info] == [TypeError] * len(faults)


async def test_a_statement_with_too_few_answers_leaves_no_caller_waiting(table: Table) -> None:
    async def too_few(items: Sequence[str]) -> Sequence[str]:
        return (await table.write(items))[1:]

    async with asyncio.timeout(5):
        answers = await asyncio.gather(*map(partial(submit, GroupCommit(too_few)), "abcd"), return_exceptions=True)
    assert all(isinstance(answer, StoreUnavailable) for answer in answers)


async def test_items_of_one_caller_share_a_statement_and_their_outcomes_are_in_order(table: Table) -> None:
    commit = commits(table)
    tasks = await begun(table, commit, "x", "y")
    together = commit.submit_all("cab", "cab")
    table.open.set()
    assert await asyncio.gather(*tasks, together) == ["X", "Y", ["C", "A", "B"]]
    assert table.batches == [["x"], ["y", "c", "a", "b"]]


async def test_items_of_one_caller_that_do_not_fit_wait_together_for_the_next_statement(table: Table) -> None:
    commit = commits(table, max_items=4)
    tasks = await begun(table, commit, "x", "y")
    answers = [commit.submit_all(items, items) for items in ("abcd", "efghij", "kl")]
    table.open.set()
    assert await asyncio.gather(*answers) == [list("ABCD"), list("EFGHIJ"), list("KL")]
    assert table.batches == [["x"], ["y"], list("abcd"), list("efghij"), list("kl")]
    await asyncio.gather(*tasks)


async def test_a_key_that_another_caller_has_makes_all_items_of_one_caller_wait(table: Table) -> None:
    commit = commits(table)
    tasks = await begun(table, commit, "x", "a1")
    answers = [commit.submit_all(("b", "a2"), "ba"), commit.submit_all("cd", "cd")]
    table.open.set()
    assert await asyncio.gather(*tasks, *answers) == ["X", "A1", ["B", "A2"], ["C", "D"]]
    assert table.batches == [["x"], ["a1", "c", "d"], ["b", "a2"]]


@pytest.mark.parametrize("items", ["abc", "b", "xbyz"])
async def test_of_one_caller_s_items_only_the_bad_one_fails(items: str, table: Table) -> None:
    commit = commits(table)
    table.bad = {"b"}
    single, outcomes = await asyncio.gather(submit(commit, "s"), commit.submit_all(items, items))
    assert single == "S"
    assert [each if isinstance(each, str) else type(each) for each in outcomes] == [
        RefusedData if each == "b" else each.upper() for each in items
    ]


async def test_one_caller_s_items_fail_together_when_postgresql_is_unreachable(table: Table) -> None:
    table.troubles = [StoreUnavailable("gone")]
    outcomes = await commits(table, patience=0.0).submit_all("ab", "ab")
    assert [str(each) for each in outcomes] == ["gone", "gone"]


async def test_one_caller_s_items_that_are_given_up_are_not_written(table: Table) -> None:
    commit = commits(table)
    (running, *_) = await begun(table, commit, "x")
    together = commit.submit_all("ab", "ab")
    together.cancel()
    table.open.set()
    assert await running == "X"
    assert await submit(commit, "c") == "C"
    assert table.batches == [["x"], ["c"]]


async def test_of_one_caller_s_items_those_with_a_key_that_came_before_wait_for_the_next_statement(
    table: Table,
) -> None:
    items = ["a1", "b1", "a2", "c1", "b2", "a3"]
    table.bad = {"b2"}
    outcomes = await commits(table).submit_each(items, [item[0] for item in items])
    assert [each if isinstance(each, str) else type(each) for each in outcomes] == [
        "A1", "B1", "A2", "C1", RefusedData, "A3",
    ]  # fmt: skip
    assert table.batches[:2] == [["a1", "b1", "c1"], ["a2", "b2"]]


async def test_halves_of_items_that_are_given_up_meanwhile_are_not_written(table: Table) -> None:
    turns = asyncio.Semaphore(0)

    async def write(items: Sequence[str]) -> Sequence[str]:
        table.batches.append(list(items))
        table.entered.release()
        await turns.acquire()
        raise RefusedData("a value does not fit")

    together = GroupCommit(write).submit_all("abcd", "abcd")
    await table.entered.acquire()
    turns.release()
    await table.entered.acquire()
    together.cancel()
    await asyncio.sleep(0)
    turns.release()
    for _ in range(10):
        await asyncio.sleep(0)
    assert table.batches == [list("abcd"), list("ab")]


WINDOW = 60.0
"""Seconds that no test waits for."""


async def waves(table: Table, commit: GroupCommit[str, str], clients: int, turns: int) -> None:
    """So many clients, each of which submits again once it is answered; not all of them in the same turn."""

    async def client(number: int) -> None:
        for turn in range(turns):
            for _ in range(number % 5):
                await asyncio.sleep(0)
            await commit.submit(f"{number}.{turn}", f"{number}.{turn}")

    async with asyncio.timeout(20):
        await asyncio.gather(*map(client, range(clients)))


@pytest.mark.parametrize(("window", "statements"), [(0.0, range(20, 100)), (0.1, range(10, 16))])
async def test_with_a_window_a_statement_waits_for_the_many_that_were_just_answered(
    window: float, statements: range, table: Table
) -> None:
    await waves(table, commits(table, window=window), clients=32, turns=10)
    assert len(table.batches) in statements


@pytest.mark.parametrize("clients", [1, 2, 7])
async def test_a_few_clients_wait_for_no_window(clients: int, table: Table) -> None:
    await waves(table, commits(table, window=WINDOW), clients=clients, turns=3)
    assert len(table.written) == 3 * clients


@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_the_window_ends_once_as_many_are_there_again(turns: int, table: Table) -> None:
    """In the same turn of the event loop, or one after the other."""
    commit = commits(table, window=WINDOW)
    async with asyncio.timeout(20):
        await asyncio.gather(*[commit.submit(item, item) for item in "abcdefgh"])
        again = []
        for item in "abcdefgh":
            again.append(commit.submit(item, item))
            for _ in range(turns):
                await asyncio.sleep(0)
        await asyncio.gather(*again)
    assert table.batches == [list("abcdefgh")] * 2


async def test_no_more_are_waited_for_than_a_statement_takes(table: Table) -> None:
    commit = commits(table, window=WINDOW, max_items=10)
    async with asyncio.timeout(20):
        await asyncio.gather(*[commit.submit(str(number), number) for number in range(20)])
    assert [len(batch) for batch in table.batches] == [10, 10]


async def test_the_window_ends_although_the_others_do_not_come_back(table: Table) -> None:
    commit = commits(table, window=0.05)
    await waves(table, commit, clients=32, turns=1)
    async with asyncio.timeout(5):
        assert await submit(commit, "a") == "A"
    assert table.batches[-1] == ["a"]


async def test_callers_of_a_batch_that_is_stopped_get_an_error(table: Table) -> None:
    commit = commits(table)
    commit.stop()
    tasks = await begun(table, commit, "a", "b", "c")
    together = commit.submit_all("xy", "xy")
    commit.stop()
    async with asyncio.timeout(5):
        answers = [*await asyncio.gather(*tasks, return_exceptions=True), *await together]
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 5
    table.open.set()
    assert await submit(commit, "d") == "D"


async def test_the_size_of_each_batch_is_observed(table: Table) -> None:
    commit = commits(table, statement="observed")
    tasks = await begun(table, commit, "a", "b", "c")
    table.open.set()
    await asyncio.gather(*tasks)
    buckets = {le: registry().get_sample_value(f"{SIZE}_bucket", {"statement": "observed", "le": le}) for le in BUCKETS}
    assert buckets == {"1.0": 1, "2.0": 2, "5.0": 2}
    assert registry().get_sample_value(f"{SIZE}_sum", {"statement": "observed"}) == 3
