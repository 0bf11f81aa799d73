"""Other task systems, one small program each, beside TaskFlux: `make bench-peers`.

They run in a virtual environment of their own (`.venv/peers`, from requirements/peers.txt) on the servers of the run.
A program finds their addresses in `BENCH_KAFKA`, `BENCH_REDIS` and `BENCH_POSTGRES`, and in `BENCH_STAMPS` the UDP
port to which it reports that a task has started. Each has the tasks of `work`, and `submitting()`, whose calls return
when a task is as durable as the system makes it. What each keeps of a task is in `contest.PEERS`.
"""
