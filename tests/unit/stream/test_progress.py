from taskflux.stream.positions import Progress

A = ("tasks.email", 0)
B = ("tasks.email", 1)


def holding(*offsets: int) -> Progress:
    progress = Progress()
    progress.assign([A, B])
    for offset in offsets:
        progress.returned(A, offset)
    return progress


def test_nothing_is_committed_before_something_is_done() -> None:
    assert holding(5, 6).to_commit() == {}


def test_a_commit_is_behind_the_last_of_an_unbroken_row_of_done_records() -> None:
    progress = holding(5, 6, 7)
    progress.done(A, 6)
    assert progress.to_commit() == {}
    progress.done(A, 5)
    assert progress.to_commit() == {A: 7}
    progress.done(A, 7)
    assert progress.to_commit() == {A: 8}


def test_gaps_in_the_offsets_do_not_hold_back_commits() -> None:
    progress = holding(5, 9)
    progress.done(A, 5)
    progress.done(A, 9)
    assert progress.to_commit() == {A: 10}


def test_what_is_committed_is_not_committed_again() -> None:
    progress = holding(5)
    progress.done(A, 5)
    progress.committed(progress.to_commit())
    assert progress.to_commit() == {}


def test_records_of_an_earlier_assignment_do_not_count() -> None:
    progress = holding(5, 6)
    progress.assign([A])
    progress.done(A, 5)
    progress.returned(B, 1)
    progress.done(B, 1)
    assert progress.to_commit() == {}
    assert progress.position(A) is None


def test_a_partition_without_a_commit_gets_its_start_committed_and_never_goes_back() -> None:
    progress = holding()
    progress.begin_at(A, 40)
    assert progress.to_commit() == {A: 40}
    progress.returned(B, 3)
    progress.done(B, 3)
    progress.begin_at(B, 0)
    assert progress.to_commit() == {A: 40, B: 4}


def test_a_client_that_seeks_back_begins_a_new_row() -> None:
    progress = holding(5, 6, 7)
    progress.done(A, 6)
    for offset in (5, 6):
        progress.returned(A, offset)
    progress.done(A, 5)
    assert progress.to_commit() == {A: 6}
    assert progress.position(A) == 7


def test_offsets_without_a_record_are_committed_once_everything_before_them_is_done() -> None:
    progress = holding(5)
    assert not progress.passed(A, 9)
    assert not progress.passed(("tasks.email", 7), 9)
    progress.done(A, 5)
    assert progress.passed(A, 9)
    assert progress.to_commit() == {A: 9}
    progress.committed({A: 9})
    assert not progress.passed(A, 9)
    assert not progress.passed(A, 6)
