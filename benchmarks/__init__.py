"""What TaskFlux costs, next to bare floors that take the same durable steps, in the same run.

`make bench`, or `python -m benchmarks`; with other task systems (`peers/`) `make bench-peers`. One module is one
measure; `floors/` is what they are compared with: starlette, aiokafka and asyncpg in the simplest form. Contestants
take turns within every round, so that what else the machine does hits all of them; figures are medians over rounds,
and ratios are medians of each round's own ratio. `goals` holds the rows against their goals. Nothing here passes or
fails by time, but `guard` by the instructions of a task and by what its statements take.

`python -m benchmarks.kafka_clients BROKER` compares aiokafka with confluent-kafka: docs/decisions/0001-kafka-client.md.
`python -m benchmarks.http_servers` compares HTTP servers: docs/decisions/0002-http-server.md.
"""
