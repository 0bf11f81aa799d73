"""`python -m tests.mutations`: tries each change of the list; exit code 1 when one is not noticed or no longer applies.

First the named tests run on the unchanged code, and must pass. Those that noticed a change run there once more in the
end, all at once: a test that fails anyway notices nothing.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue

from tests.mutations.listed import MUTATIONS
from tests.mutations.mutant import BASELINE_LIMIT, Copy, DoesNotApply, Mutation, Outcome, Verdict

ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Answers the exit code: 0 when every change was noticed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.parts < 0 or (options.part is not None and not 0 <= options.part < options.parts):
        parser.error("--part K is one of --parts N, from 0 to N - 1")
    stale = list(_stale(MUTATIONS))
    for complaint in stale:
        print(f"does not apply: {complaint}")
    chosen = [each for each in MUTATIONS if options.only in f"{each.path} {each.wrong}"]
    if options.parts:
        part = options.part if options.part is not None else datetime.now(UTC).toordinal() % options.parts
        chosen = chosen[part :: options.parts]
        print(f"part {part} of {options.parts}: {len(chosen)} of {len(MUTATIONS)} changes", flush=True)
    if options.list:
        print(*(f"{each.path}: {each.wrong}" for each in chosen), sep="\n")
        return bool(stale)
    if not chosen:
        print("no change of the list is chosen")
        return 1
    if stale:
        return 1
    return _try_all(chosen, options.jobs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="those whose file or sentence holds this text")
    parser.add_argument("--parts", type=int, default=0, metavar="N", help="one part of N: today's, by the date")
    parser.add_argument("--part", type=int, metavar="K", help="this part (from 0) in place of today's")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="tried at once")
    parser.add_argument("--list", action="store_true", help="say which, and try none")
    return parser


def _stale(mutations: Sequence[Mutation]) -> list[str]:
    complaints = []
    for each in mutations:
        try:
            each.changed((ROOT / each.path).read_text(encoding="utf-8"))
        except (DoesNotApply, OSError) as error:
            complaints.append(f"“{each.wrong}”: {error}")
    return complaints


def _try_all(chosen: Sequence[Mutation], jobs: int) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # it cleans up, as after Ctrl-C
    stop = threading.Event()
    with tempfile.TemporaryDirectory(prefix="taskflux-mutations-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)  # PostgreSQL runs as another user
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(jobs):
            (target := Path(directory) / str(number)).mkdir()
            copies.put(Copy.of(ROOT, target, stop))

        first = copies.get()
        unchanged = first.run(tuple(dict.fromkeys(test for each in chosen for test in each.tests)), BASELINE_LIMIT)
        copies.put(first)
        if unchanged.code != 0:
            failed = "were not done in time" if unchanged.code is None else "failed"
            print(unchanged.printed, f"on the unchanged code the tests {failed}: nothing was tried", sep="\n")
            return 1

        def tried(mutation: Mutation) -> Outcome:
            copy, began = copies.get(), time.monotonic()
            try:
                outcome = copy.try_out(mutation)
            finally:
                copies.put(copy)
            _tell(mutation, outcome, f"{time.monotonic() - began:.0f} s")
            return outcome

        with ThreadPoolExecutor(jobs) as pool:
            try:
                outcomes = list(pool.map(tried, chosen))
            except BaseException:
                stop.set()
                raise
        confirmed = copies.get().confirmed(outcomes)
    for mutation, outcome, after in zip(chosen, outcomes, confirmed, strict=True):
        if after is not outcome:
            _tell(mutation, after, "on the unchanged code")
    missed = sum(outcome.verdict is not Verdict.NOTICED for outcome in confirmed)
    print(f"{len(confirmed) - missed} of {len(confirmed)} changes were noticed")
    return 1 if missed else 0


def _tell(mutation: Mutation, outcome: Outcome, when: str) -> None:
    print(f"{outcome.verdict}: {mutation.path}: {mutation.wrong} ({outcome.reason}; {when})", flush=True)
    if outcome.verdict is not Verdict.NOTICED:
        print(outcome.printed, flush=True)


if __name__ == "__main__":
    sys.exit(main())
