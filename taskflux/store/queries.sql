-- Every statement of the store, by name. Python never concatenates SQL.
--
-- Four rules hold for all of them:
--   * A transition compares and sets (id, state, version); what does not match changes nothing.
--   * A batch locks its task rows first, in the order of their ids (a CTE with ORDER BY … FOR UPDATE). The lock of a
--     task's row guards its rows in `due` and `claims` too, so nothing locks those before it. Who touches rows in `due`
--     without it never waits for them (SKIP LOCKED): whoever holds such a row deletes it or gives it a newer version.
--   * A batch comes as arrays, sorted by id, with its least and greatest id beside `= ANY`, so that only its partitions
--     are looked at; what belongs to an id is found in another array at width_bucket(id, ids).
--   * A statement that locks rows never joins tasks on their id, nor bounds it by what it only learns on the way: such a
--     plan prunes partitions while it runs, and PostgreSQL 18 before 18.7 then corrupts its memory when a row that it
--     waited for has changed (https://github.com/postgres/postgres/commit/1b5dd3a). `= ANY` of an array is an index scan
--     whatever the planner knows of the tables' sizes, too.

-- name: insert_tasks
-- A group commit of submissions. A repeated idempotency key inserts nothing and is answered by find_keys.
WITH input AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::text[], $5::integer[], $6::text[], $7::timestamptz[], $8::float8[],
        $9::timestamptz[], $10::text[], $11::text[], $12::text[], $13::bytea[], $14::float8[]
    ) AS i (id, tenant, type, payload, max_attempts, key, schedule_at, delay, expires_at, metadata, traceparent,
            idempotency_key, digest, ttl)
), keyed AS (
    INSERT INTO idempotency_keys (tenant, key, task_id, type, digest, expires_at)
    SELECT tenant, idempotency_key, id, type, digest, now() + make_interval(secs => ttl)
    FROM input WHERE idempotency_key IS NOT NULL ORDER BY tenant, idempotency_key
    ON CONFLICT (tenant, key) DO UPDATE
    SET task_id = EXCLUDED.task_id, type = EXCLUDED.type, digest = EXCLUDED.digest,
        created_at = now(), expires_at = EXCLUDED.expires_at
    WHERE idempotency_keys.expires_at <= now()
    RETURNING task_id
), accepted AS (
    INSERT INTO tasks (id, tenant, type, payload, max_attempts, key, due_at, expires_at, metadata, traceparent, timeline)
    SELECT id, tenant, type, payload, max_attempts, key,
           GREATEST(now(), COALESCE(schedule_at, now() + make_interval(secs => delay))),
           expires_at, metadata, traceparent, ARRAY[(SELECT timeline_now()) || '|accepted|scheduled|0|1|']
    FROM input WHERE idempotency_key IS NULL OR id IN (SELECT task_id FROM keyed) ORDER BY id
    ON CONFLICT (id) DO NOTHING
    RETURNING id, type, created_at, due_at, expires_at
), waiting AS (
    INSERT INTO due (task_id, type, version, publish_at, expires_at)
    SELECT id, type, 1, CASE WHEN due_at <= now() THEN now() + make_interval(secs => $15) ELSE due_at END, expires_at
    FROM accepted
)
SELECT id, created_at, due_at <= now() AS due_now FROM accepted;

-- name: find_keys
-- What idempotency keys stand for.
SELECT tenant, key, task_id, type, digest, created_at
FROM idempotency_keys
WHERE tenant = ANY($1) AND key = ANY($2) AND (tenant, key) IN (SELECT * FROM unnest($1::text[], $2::text[]));

-- name: find_created
-- Which of these ids are there already (an insert whose answer was lost).
SELECT id, created_at FROM tasks WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3;

-- name: get_task
SELECT id, tenant, type, state, version, attempts, max_attempts, replays, key, payload, metadata, traceparent, created_at,
       updated_at, due_at, expires_at, result, error_class, error_reason, delivery, timeline
FROM tasks WHERE id = $1 AND tenant = $2;

-- name: claim
-- A batch of records becomes running tasks of one worker; the payload comes with the claim.
WITH locked AS (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY($1) AND t.id BETWEEN $3 AND $4
      AND t.version = ($2::integer[])[width_bucket(t.id, $1::uuid[])] AND t.state IN ('scheduled', 'queued') AND t.type = $5
    ORDER BY t.id FOR UPDATE
), claimed AS (
    UPDATE tasks t
    SET state = 'running', version = t.version + 1, claim_version = t.version + 1, attempts = t.attempts + 1,
        worker = $6, updated_at = now(),
        timeline = timeline_add(t.timeline, (SELECT timeline_now()) || '|claimed|running|' || (t.attempts + 1) || '|1|' || $7)
    WHERE t.id = ANY(ARRAY(SELECT id FROM locked)) AND t.id BETWEEN $3 AND $4
    RETURNING t.id, t.version, t.attempts, t.max_attempts, t.handbacks, t.replays, t.tenant, t.key, t.payload, t.metadata,
              t.traceparent, t.attempt_span, t.created_at, t.due_at, t.expires_at <= now() AS expired, t.result
), leased AS (
    INSERT INTO claims (task_id, worker, type, version)
    SELECT id, $6, $5, version FROM claimed ORDER BY id
    ON CONFLICT (task_id) DO UPDATE SET worker = EXCLUDED.worker, version = EXCLUDED.version
)
SELECT *, extract(epoch FROM now() - due_at)::float8 AS waited FROM claimed;

-- name: reclaim
-- Tasks that a claim of ours took though its answer was lost.
SELECT t.id, t.version, t.attempts, t.max_attempts, t.handbacks, t.replays, t.tenant, t.key, t.payload, t.metadata,
       t.traceparent, t.attempt_span, t.created_at, t.expires_at <= now() AS expired, t.result,
       extract(epoch FROM now() - t.due_at)::float8 AS waited
FROM tasks t
WHERE t.id = ANY($1) AND t.id BETWEEN $3 AND $4 AND t.state = 'running' AND t.worker = $5
  AND t.claim_version = t.version AND t.version = ($2::integer[])[width_bucket(t.id, $1::uuid[])] + 1;

-- name: settle
-- A batch of outcomes. A claim whose lease ran out still wins with `succeeded` or `dead` while nobody has claimed the
-- task again.
WITH input AS MATERIALIZED (
    SELECT * FROM unnest(
        $2::integer[], $3::text[], $4::text[], $5::float8[], $6::integer[], $7::integer[], $8::text[], $9::text[],
        $10::text[], $11::text[], $12::text[]
    ) WITH ORDINALITY AS i (
        version, state, event, delay, given_back, handbacks, result, error_class, reason, note, span, place
    )
), locked AS (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY($1) AND t.id BETWEEN $13 AND $14
      AND t.claim_version = ($2::integer[])[width_bucket(t.id, $1::uuid[])]
      AND (t.state = 'running' AND t.version = t.claim_version
           OR t.state IN ('scheduled', 'queued', 'uncertain')
              AND ($3::text[])[width_bucket(t.id, $1::uuid[])] IN ('succeeded', 'dead'))
    ORDER BY t.id FOR UPDATE
), settled AS (
    UPDATE tasks t
    SET state = i.state, version = t.version + (t.state <> 'running')::integer, claim_version = NULL, worker = NULL,
        attempts = t.attempts - i.given_back, handbacks = i.handbacks, updated_at = now(),
        due_at = CASE WHEN i.state = 'scheduled' THEN now() + make_interval(secs => i.delay) ELSE t.due_at END,
        result = COALESCE(i.result, t.result), error_class = i.error_class, error_reason = i.reason,
        attempt_span = COALESCE(i.span, t.attempt_span),
        timeline = timeline_add(
            t.timeline,
            (SELECT timeline_now()) || '|'
            || CASE WHEN t.state = 'running' THEN i.event WHEN i.state = 'succeeded' THEN 'late-success' ELSE 'late-death' END
            || '|' || i.state || '|' || (t.attempts - i.given_back) || '|1|' || i.note)
    FROM input i
    WHERE i.place = width_bucket(t.id, $1::uuid[])
      AND t.id = ANY(ARRAY(SELECT id FROM locked)) AND t.id BETWEEN $13 AND $14
    RETURNING t.id, t.type, t.state, t.version, t.due_at, t.expires_at, t.version <> i.version AS late,
              extract(epoch FROM now() - t.created_at)::float8 AS age
), released AS (
    DELETE FROM claims c WHERE c.task_id = ANY($1) AND c.version = ($2::integer[])[width_bucket(c.task_id, $1::uuid[])]
), waiting AS (
    INSERT INTO due (task_id, dead, type, version, publish_at, expires_at)
    SELECT id, state = 'dead', type, version, CASE WHEN state = 'dead' THEN now() ELSE due_at END, expires_at
    FROM settled WHERE state IN ('scheduled', 'dead') ORDER BY id
    ON CONFLICT (task_id, dead) DO UPDATE SET version = EXCLUDED.version, publish_at = EXCLUDED.publish_at
)
SELECT id, late, age FROM settled;

-- name: confirm
-- Kafka has the records: what is due is done with, unless the record was taken (or published again) meanwhile.
WITH input AS MATERIALIZED (
    SELECT * FROM unnest($3::uuid[], $4::integer[], $5::bigint[]) WITH ORDINALITY AS i (log, "partition", "offset", place)
), locked AS (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY($1) AND t.id BETWEEN $6 AND $7
      AND t.version = ($2::integer[])[width_bucket(t.id, $1::uuid[])] AND t.state = 'scheduled'
    ORDER BY t.id FOR UPDATE
), queued AS (
    UPDATE tasks t
    SET state = 'queued', updated_at = now(), published_log = i.log, published_partition = i."partition",
        published_offset = i."offset",
        timeline = timeline_add(t.timeline, (SELECT timeline_now()) || '|published|queued|' || t.attempts || '|1|')
    FROM input i
    WHERE i.place = width_bucket(t.id, $1::uuid[])
      AND t.id = ANY(ARRAY(SELECT id FROM locked)) AND t.id BETWEEN $6 AND $7
    RETURNING t.id
), done AS MATERIALIZED (
    SELECT d.task_id FROM due d
    WHERE d.task_id = ANY($1) AND NOT d.dead AND d.version = ($2::integer[])[width_bucket(d.task_id, $1::uuid[])]
      AND (SELECT count(*) FROM queued) >= 0  -- after the tasks are locked: PostgreSQL leaves what nobody reads for last
    ORDER BY d.task_id FOR UPDATE SKIP LOCKED
)
DELETE FROM due d WHERE d.task_id = ANY(ARRAY(SELECT task_id FROM done)) AND NOT d.dead;

-- name: next_due
-- Seconds until the next row of each type is due (negative: overdue). Dead letters stand under the type NULL.
SELECT tt.type, extract(epoch FROM d.publish_at - now())::float8 AS wait
FROM task_types tt
CROSS JOIN LATERAL (
    SELECT publish_at FROM due WHERE type = tt.type AND NOT dead ORDER BY publish_at LIMIT 1
) AS d
UNION ALL
(SELECT NULL, extract(epoch FROM publish_at - now())::float8 FROM due WHERE dead ORDER BY publish_at LIMIT 1);

-- name: due_now
SELECT task_id, version FROM due WHERE type = $1 AND NOT dead AND publish_at <= now() ORDER BY publish_at LIMIT $2;

-- name: take_due
-- Whoever publishes first says so: publish_at moves by the grace and the version rises. Rows whose task has moved on
-- (its record overtook the confirmation, or it was cancelled) are dropped.
WITH waiting AS MATERIALIZED (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY($1) AND t.id BETWEEN $3 AND $4
      AND t.version = ($2::integer[])[width_bucket(t.id, $1::uuid[])] AND t.state = 'scheduled'
), locked AS (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY($1) AND t.id BETWEEN $3 AND $4
      AND t.version = ($2::integer[])[width_bucket(t.id, $1::uuid[])] AND t.state = 'scheduled'
    ORDER BY t.id FOR UPDATE SKIP LOCKED
), bumped AS (
    UPDATE tasks t SET version = t.version + 1
    WHERE t.id = ANY(ARRAY(SELECT id FROM locked)) AND t.id BETWEEN $3 AND $4
    RETURNING t.id, t.version, t.key, t.traceparent
), moved AS (
    UPDATE due d SET publish_at = now() + make_interval(secs => $5), version = d.version + 1
    WHERE d.task_id = ANY(ARRAY(SELECT id FROM bumped)) AND NOT d.dead
), stale AS MATERIALIZED (
    SELECT d.task_id FROM due d
    WHERE d.task_id = ANY($1) AND NOT d.dead AND d.version = ($2::integer[])[width_bucket(d.task_id, $1::uuid[])]
      AND d.task_id NOT IN (SELECT id FROM waiting)
    FOR UPDATE SKIP LOCKED
), dropped AS (
    DELETE FROM due d WHERE d.task_id = ANY(ARRAY(SELECT task_id FROM stale)) AND NOT d.dead
)
SELECT id, version, key, traceparent FROM bumped;

-- name: dead_now
SELECT task_id FROM due WHERE dead AND publish_at <= now() ORDER BY publish_at LIMIT $1;

-- name: take_dead
-- Dead letters that are owed to their topic. They are told apart by (task id, version), so a repeat does no harm.
WITH candidates AS MATERIALIZED (
    SELECT task_id, version FROM due
    WHERE task_id = ANY($1) AND dead AND publish_at <= now() ORDER BY task_id FOR UPDATE SKIP LOCKED
), known AS MATERIALIZED (
    SELECT t.id, t.type, t.error_class, t.attempts, t.traceparent FROM tasks t
    WHERE t.id = ANY(ARRAY(SELECT task_id FROM candidates)) AND t.id BETWEEN $2 AND $3
), moved AS (
    UPDATE due d SET publish_at = now() + make_interval(secs => $4)
    WHERE d.task_id = ANY(ARRAY(SELECT id FROM known)) AND d.dead
), stale AS (
    DELETE FROM due d
    WHERE d.task_id = ANY(ARRAY(SELECT task_id FROM candidates EXCEPT SELECT id FROM known)) AND d.dead
)
SELECT k.id, c.version, k.type, k.error_class, k.attempts, k.traceparent
FROM known k JOIN candidates c ON c.task_id = k.id;

-- name: confirm_dead
WITH done AS MATERIALIZED (
    SELECT d.task_id FROM due d JOIN unnest($1::uuid[], $2::integer[]) AS i (id, version) ON i.id = d.task_id
    WHERE d.task_id = ANY($1) AND d.dead AND d.version = i.version ORDER BY d.task_id FOR UPDATE OF d
)
DELETE FROM due d WHERE d.task_id = ANY(ARRAY(SELECT task_id FROM done)) AND d.dead;

-- name: expired_now
SELECT task_id, version FROM due WHERE NOT dead AND expires_at <= now() ORDER BY expires_at LIMIT $1;

-- name: expire_waiting
-- Tasks that waited beyond their expiresAt.
WITH waiting AS MATERIALIZED (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY($1) AND t.id BETWEEN $3 AND $4
      AND t.version = ($2::integer[])[width_bucket(t.id, $1::uuid[])] AND t.state = 'scheduled'
), locked AS (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY($1) AND t.id BETWEEN $3 AND $4
      AND t.version = ($2::integer[])[width_bucket(t.id, $1::uuid[])] AND t.state = 'scheduled'
    ORDER BY t.id FOR UPDATE SKIP LOCKED
), expired AS (
    UPDATE tasks t
    SET state = 'dead', version = t.version + 1, updated_at = now(), error_class = 'Expired',
        error_reason = 'it was still waiting when its expiresAt passed',
        timeline = timeline_add(t.timeline, (SELECT timeline_now()) || '|died|dead|' || t.attempts || '|1|Expired')
    WHERE t.id = ANY(ARRAY(SELECT id FROM locked)) AND t.id BETWEEN $3 AND $4
    RETURNING t.id, t.type, t.version
), stale AS MATERIALIZED (
    SELECT d.task_id FROM due d
    WHERE d.task_id = ANY($1) AND NOT d.dead AND d.version = ($2::integer[])[width_bucket(d.task_id, $1::uuid[])]
      AND d.task_id NOT IN (SELECT id FROM waiting)
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM due d
    WHERE d.task_id = ANY(ARRAY(SELECT id FROM expired UNION ALL SELECT task_id FROM stale)) AND NOT d.dead
), owed AS (
    INSERT INTO due (task_id, dead, type, version, publish_at)
    SELECT id, true, type, version, now() FROM expired ORDER BY id
    ON CONFLICT (task_id, dead) DO UPDATE SET version = EXCLUDED.version, publish_at = EXCLUDED.publish_at
)
SELECT id, type FROM expired;

-- name: beat
-- One row renews all claims of a worker. No row comes back once somebody has ended the lease.
INSERT INTO workers (id, handler, label, origin, pid, in_flight, type)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (id) DO UPDATE SET beat_at = now(), in_flight = EXCLUDED.in_flight WHERE NOT workers.ended
RETURNING id;

-- name: end_lease
-- A worker that leaves: what it could not settle is free at once.
UPDATE workers SET ended = true WHERE id = $1;

-- name: end_leases_of
-- A supervisor ends the leases of its own former run, or of one child ($2) that it saw die.
WITH deposed AS (
    DELETE FROM leaders WHERE origin = $1 AND $2::integer IS NULL
)
UPDATE workers SET ended = true WHERE origin = $1 AND NOT ended AND ($2::integer IS NULL OR pid = $2);

-- name: server_uptime
-- Seconds since PostgreSQL started: workers could not renew while it was away.
SELECT extract(epoch FROM now() - pg_postmaster_start_time())::float8;

-- name: lapsed
-- Claims whose lease ran out. $1: lease in seconds, or NULL to look only at leases that were ended.
SELECT c.task_id, c.version, c.worker FROM claims c LEFT JOIN workers w ON w.id = c.worker
WHERE w.ended OR $1::float8 IS NOT NULL AND (w.id IS NULL OR w.beat_at < now() - make_interval(secs => $1))
LIMIT $2;

-- name: sweep
-- Resend or hold lapsed claims, as the type's policy says, unless their worker has beaten again. $6: lease in seconds, or
-- NULL; $7: rows a second that may be published again, the first in $8 seconds.
WITH alive AS MATERIALIZED (
    SELECT id FROM workers WHERE NOT ended AND ($6::float8 IS NULL OR beat_at >= now() - make_interval(secs => $6))
), held AS MATERIALIZED (
    SELECT array_agg(type) AS types FROM task_types WHERE ambiguous = 'hold'
), locked AS (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY($1) AND t.id BETWEEN $4 AND $5 AND t.state = 'running'
      AND t.version = ($2::integer[])[width_bucket(t.id, $1::uuid[])]
      AND t.worker = ($3::uuid[])[width_bucket(t.id, $1::uuid[])] AND t.worker NOT IN (SELECT id FROM alive)
    ORDER BY t.id FOR UPDATE
), swept AS (
    UPDATE tasks t
    SET state = CASE WHEN t.type = ANY((SELECT types FROM held)::text[]) THEN 'uncertain' ELSE 'scheduled' END,
        version = t.version + 1, updated_at = now(),
        due_at = CASE WHEN t.type = ANY((SELECT types FROM held)::text[]) THEN t.due_at ELSE now() END,
        error_class = 'Ambiguous', error_reason = 'the worker that ran it was lost',
        timeline = timeline_add(
            t.timeline,
            (SELECT timeline_now()) || '|lease-ran-out|'
            || CASE WHEN t.type = ANY((SELECT types FROM held)::text[]) THEN 'uncertain' ELSE 'scheduled' END
            || '|' || t.attempts || '|1|')
    WHERE t.id = ANY(ARRAY(SELECT id FROM locked)) AND t.id BETWEEN $4 AND $5
    RETURNING t.id, t.type, t.state, t.version, t.expires_at
), released AS (
    DELETE FROM claims c
    WHERE c.task_id = ANY($1) AND c.version = ($2::integer[])[width_bucket(c.task_id, $1::uuid[])]
      AND c.worker = ($3::uuid[])[width_bucket(c.task_id, $1::uuid[])] AND c.worker NOT IN (SELECT id FROM alive)
), waiting AS (
    INSERT INTO due (task_id, type, version, publish_at, expires_at)
    SELECT id, type, version, now() + make_interval(secs => $8 + (row_number() OVER (ORDER BY id) - 1) / $7::float8),
           expires_at
    FROM swept WHERE state = 'scheduled' ORDER BY id
    ON CONFLICT (task_id, dead) DO UPDATE SET version = EXCLUDED.version, publish_at = EXCLUDED.publish_at
)
SELECT type, state, count(*)::integer AS tasks FROM swept GROUP BY type, state;

-- name: forget_workers
-- Workers that are gone and hold nothing.
DELETE FROM workers w
WHERE (w.ended OR w.beat_at < now() - interval '1 hour') AND NOT EXISTS (SELECT FROM claims c WHERE c.worker = w.id);

-- name: audit_page
-- The queued ones among the next $2 tasks behind id $1. `last` is where the next page begins, NULL at the end.
WITH page AS MATERIALIZED (
    SELECT id, type, state, version, published_log, published_partition, published_offset
    FROM tasks WHERE id > $1 ORDER BY id LIMIT $2
), last AS (
    SELECT id FROM page ORDER BY id DESC LIMIT 1
)
SELECT last.id AS last, p.id, p.type, p.version, p.published_log, p.published_partition, p.published_offset
FROM last LEFT JOIN page p ON p.state = 'queued';

-- name: requeue
-- Kafka no longer owes these queued tasks: compared and set first, published after, at $5 rows a second, the first
-- in $6 seconds.
WITH locked AS (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY($1) AND t.id BETWEEN $3 AND $4
      AND t.version = ($2::integer[])[width_bucket(t.id, $1::uuid[])] AND t.state = 'queued'
    ORDER BY t.id FOR UPDATE
), requeued AS (
    UPDATE tasks t
    SET state = 'scheduled', version = t.version + 1, updated_at = now(),
        timeline = timeline_add(t.timeline, (SELECT timeline_now()) || '|not-owed|scheduled|' || t.attempts || '|1|')
    WHERE t.id = ANY(ARRAY(SELECT id FROM locked)) AND t.id BETWEEN $3 AND $4
    RETURNING t.id, t.type, t.version, t.expires_at
), waiting AS (
    INSERT INTO due (task_id, type, version, publish_at, expires_at)
    SELECT id, type, version, now() + make_interval(secs => $6 + (row_number() OVER (ORDER BY id) - 1) / $5::float8),
           expires_at
    FROM requeued ORDER BY id
    ON CONFLICT (task_id, dead) DO UPDATE SET version = EXCLUDED.version, publish_at = EXCLUDED.publish_at
)
SELECT type, count(*)::integer AS tasks FROM requeued GROUP BY type;

-- name: lead
-- Take or renew the leadership $1 for holder $2, for $3 seconds. A row comes back to the leader alone.
INSERT INTO leaders (name, holder, expires_at, origin) VALUES ($1, $2, now() + make_interval(secs => $3), $4)
ON CONFLICT (name) DO UPDATE SET holder = EXCLUDED.holder, expires_at = EXCLUDED.expires_at, origin = EXCLUDED.origin
WHERE leaders.holder = EXCLUDED.holder OR leaders.expires_at <= now()
RETURNING holder;

-- name: resign
DELETE FROM leaders WHERE name = $1 AND holder = $2;

-- name: register_type
INSERT INTO task_types (type, schema, max_attempts, ambiguous, provider) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (type) DO UPDATE
SET schema = EXCLUDED.schema, max_attempts = EXCLUDED.max_attempts, ambiguous = EXCLUDED.ambiguous,
    provider = EXCLUDED.provider, updated_at = now()
WHERE (task_types.schema, task_types.max_attempts, task_types.ambiguous, task_types.provider)
      IS DISTINCT FROM (EXCLUDED.schema, EXCLUDED.max_attempts, EXCLUDED.ambiguous, EXCLUDED.provider);

-- name: list_types
SELECT type, schema, max_attempts, ambiguous, provider FROM task_types ORDER BY type;

-- name: type_names
SELECT type FROM task_types ORDER BY type;

-- name: list_circuits
SELECT provider, open, reason, extract(epoch FROM now() - closed_at)::float8 AS closed_for FROM circuits;

-- name: open_circuit
-- True to whoever opened it.
INSERT INTO circuits (provider, open, error_class, reason, opened_at, probes, probe_at)
VALUES ($1, true, $2, $3, now(), 0, now() + make_interval(secs => $4))
ON CONFLICT (provider) DO UPDATE
SET open = true, error_class = EXCLUDED.error_class, reason = EXCLUDED.reason, opened_at = now(), probes = 0,
    probe_at = EXCLUDED.probe_at
WHERE NOT circuits.open
RETURNING provider;

-- name: close_circuit
UPDATE circuits SET open = false, closed_at = now() WHERE provider = $1 AND open RETURNING provider;

-- name: take_probe
-- The right to send the next probe. The wait doubles from $2 seconds up to $3.
UPDATE circuits
SET probes = probes + 1, probe_at = now() + make_interval(secs => LEAST($3::float8, $2::float8 * 2 ^ LEAST(probes + 1, 30)))
WHERE provider = $1 AND open AND probe_at <= now()
RETURNING probes;

-- name: add_dead_letters
-- Stored once for each identity. For a task the reason and the payload come from its row, which no replay can have
-- changed: replays start from here.
INSERT INTO dead_letters (id, identity, tenant, task_id, task_version, type, error_class, reason, attempts, payload,
                          traceparent, origin, record_key, record_value, record_headers)
SELECT i.id, i.identity, COALESCE(t.tenant, 'default'), i.task_id, i.task_version, COALESCE(t.type, i.type),
       COALESCE(t.error_class, i.error_class), COALESCE(t.error_reason, i.reason), COALESCE(t.attempts, i.attempts),
       t.payload, COALESCE(t.traceparent, i.traceparent), i.origin, i.record_key, i.record_value, i.record_headers
FROM unnest(
    $1::uuid[], $2::text[], $3::uuid[], $4::integer[], $5::text[], $6::text[], $7::text[], $8::integer[], $9::text[],
    $10::text[], $11::bytea[], $12::bytea[], $13::text[]
) AS i (id, identity, task_id, task_version, type, error_class, reason, attempts, traceparent, origin, record_key,
        record_value, record_headers)
LEFT JOIN tasks t
    ON t.id = i.task_id AND t.id = ANY($3) AND t.id BETWEEN $14 AND $15 AND t.version = i.task_version AND t.state = 'dead'
ORDER BY i.identity
ON CONFLICT (identity) DO NOTHING
RETURNING id, error_class;

-- name: make_partitions
-- Partitions for this week and $1 further ones.
SELECT count(*) FILTER (WHERE create_task_partition(now() + week * interval '7 days'))::integer
FROM generate_series(0, $1::integer) AS week;

-- name: forget_keys
WITH expired AS MATERIALIZED (
    SELECT tenant, key FROM idempotency_keys WHERE expires_at <= now() LIMIT $1 FOR UPDATE SKIP LOCKED
)
DELETE FROM idempotency_keys k USING expired e WHERE k.tenant = e.tenant AND k.key = e.key;
