"""`python -m tests.protocol`: schedules of the protocol, which must all hold, and of each mutation, which must break.

Prints the schedule in which a mutation is noticed, step by step. Ends with 1 where the protocol broke, or a mutation
was not noticed.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from typing import Final

from tests.protocol.mutations import Wrong
from tests.protocol.schedule import Outcome, schedule_of

CHUNK: Final = 50
AT_ONCE: Final = 4
"""Chunks of a mutation's schedules that are looked through before the next ones are begun."""
SHOWN: Final = 40
"""Lines of a schedule that are shown for a mutation: the last ones about the task."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Answers the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.protocol", description=__doc__)
    parser.add_argument("--schedules", type=int, default=20_000, metavar="N", help="seeds 1 to N (20,000)")
    parser.add_argument("--seed", type=int, metavar="S", help="run this one schedule, and print all of it")
    parser.add_argument(
        "--mutation", type=Wrong, metavar="NAME", help="only this one; with --seed, its schedule: " + ", ".join(Wrong)
    )
    parser.add_argument("--jobs", type=int, default=None, metavar="N", help="processes (one for each core)")
    options = parser.parse_args(arguments)
    wrong = [] if options.mutation is None else [options.mutation]
    if options.seed is not None:
        return _print_one(schedule_of(options.seed, wrong, log=True), wrong)
    with _pool(options.jobs) as pool:
        broken = not wrong and not _holds(pool, options.schedules)
        missed = [each for each in wrong or Wrong if not _noticed(pool, each, options.schedules)]
    if missed:
        print("not noticed: " + ", ".join(missed))
    return 1 if broken or missed else 0


@contextmanager
def _pool(jobs: int | None) -> Iterator[Pool]:
    with get_context("fork").Pool(jobs) as pool:
        yield pool


def _chunks(schedules: int) -> Iterator[range]:
    for first in range(1, schedules + 1, CHUNK):
        yield range(first, min(first + CHUNK, schedules + 1))


def run_chunk(wrong: Sequence[Wrong], seeds: range) -> tuple[Counter[str], Outcome | None]:
    """These schedules: what they have counted, and the first that broke, with its steps."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        outcome = schedule_of(seed, wrong)
        counts.update(outcome.counts)
        if outcome.violation is not None:
            return counts, schedule_of(seed, wrong, log=True)
    return counts, None


def _holds(pool: Pool, schedules: int) -> bool:
    began, counts, first = time.monotonic(), Counter[str](), None
    for counted, broken in pool.imap(partial(run_chunk, ()), _chunks(schedules)):
        counts.update(counted)
        first = first or broken
    print(f"The protocol: {schedules} schedules in {time.monotonic() - began:.0f} s.")
    print("  " + ", ".join(f"{number} {name}" for name, number in counts.most_common()))
    if first is None:
        print("  All hold.\n", flush=True)
        return True
    print(f"  BROKEN. Seed {first.seed}: {first.violation}")
    print("\n".join(first.log), flush=True)
    return False


def _noticed(pool: Pool, wrong: Wrong, schedules: int) -> bool:
    print(f"{wrong}: {wrong.meaning}.")
    chunks = list(_chunks(schedules))
    for at in range(0, len(chunks), AT_ONCE):  # what is handed to the pool is run, even if nobody waits for it any more
        found = pool.map(partial(run_chunk, (wrong,)), chunks[at : at + AT_ONCE])
        broken = next((each for _, each in found if each is not None), None)
        if broken is not None:
            print(f"  Seed {broken.seed} breaks it: {broken.violation}")
            print("\n".join(f"  {line}" for line in _about(broken)) + "\n", flush=True)
            return True
    print(f"  NOT NOTICED in {schedules} schedules.\n", flush=True)
    return False


def _about(outcome: Outcome) -> list[str]:
    """The last lines of a schedule that concern the task that it broke, and what failed meanwhile."""
    task = re.search(r"task \d+", outcome.violation or "")
    wanted = re.compile((rf"{task[0]}\b|" if task else "") + r"lease|[A-Z]{4,}")
    lines = [line for line in outcome.log if wanted.search(line) and "begins lease" not in line]
    return lines[-SHOWN:]


def _print_one(outcome: Outcome, wrong: Sequence[Wrong]) -> int:
    print("\n".join(outcome.log))
    print(f"Seed {outcome.seed}: {outcome.violation or 'holds'}" + (f" ({wrong[0]})" if wrong else ""))
    return 0 if outcome.violation is None else 1


if __name__ == "__main__":
    sys.exit(main())
