-- The elected leader: ended leases, records that Kafka lost, partitions, old keys; and what it measures for all, from
-- the narrow tables: no measurement reads `tasks`.

-- name: lead
-- Take or renew the leadership :name for :holder, for :seconds. Only the leader gets a row. A leadership that lasts
-- longer than that was taken before the clock was set back: its holder, if alive, renews it at once. `audits_outbox`
-- tells us from a leader of the release before (`write_back`).
INSERT INTO leaders (name, holder, expires_at, origin, audits_outbox)
VALUES (:name, :holder, now() + make_interval(secs => :seconds), :origin, :holder)
ON CONFLICT (name) DO UPDATE
SET holder = EXCLUDED.holder, expires_at = EXCLUDED.expires_at, origin = EXCLUDED.origin,
    audits_outbox = EXCLUDED.audits_outbox
WHERE leaders.holder = EXCLUDED.holder OR leaders.expires_at <= now()
   OR leaders.expires_at > clock_timestamp() + make_interval(secs => :seconds)  -- now() is from before waiting for the row
RETURNING holder;

-- name: resign
DELETE FROM leaders WHERE name = :name AND holder = :holder;

-- name: beats
-- Every lease that was not ended. `server` changes with every start of PostgreSQL.
SELECT id, beat, pg_postmaster_start_time() AS server FROM workers WHERE NOT ended;

-- name: end_silent
-- End the leases of these workers whose beat is still the one that was seen. A worker whose claim is running is left
-- for the next time; the claims of :overdue ones have run longer than any statement may, so nothing waits for their
-- answers.
WITH silent AS MATERIALIZED (
    SELECT id FROM workers
    WHERE id = ANY(:ids) AND beat = (:beats::bigint[])[width_bucket(id, :ids::uuid[])] AND NOT ended
    ORDER BY id FOR UPDATE SKIP LOCKED
), overdue AS MATERIALIZED (
    -- A running claim does not lock them against this. Nothing waits: two of these would wait for each other's rows.
    SELECT id FROM workers
    WHERE id = ANY(:overdue) AND beat = (:beats::bigint[])[width_bucket(id, :ids::uuid[])] AND NOT ended
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE workers w SET ended = true, lost = true
WHERE w.id = ANY(ARRAY(SELECT id FROM silent UNION SELECT id FROM overdue))
RETURNING w.label, w.in_flight;

-- name: end_claims
-- Claims of ended leases that their wide rows do not say yet: a claim that ran while its lease was ended all the same.
SELECT end_claims(workers) AS claims
FROM (
    SELECT array_agg(DISTINCT c.worker) AS workers FROM claims c LEFT JOIN workers w ON w.id = c.worker
    WHERE w.ended IS NOT FALSE AND c.attempt IS NOT NULL
) AS left_over WHERE workers IS NOT NULL;

-- name: lapsed
-- The claims whose lease was ended, and those of unknown workers: of whole workers, until :limit is reached. `lost` are
-- workers that did not stop normally.
WITH gone AS MATERIALIZED (
    SELECT c.worker, w.lost IS NOT FALSE AS lost, sum(count(*)) OVER (ORDER BY c.worker) - count(*) AS before
    FROM claims c LEFT JOIN workers w ON w.id = c.worker
    WHERE w.ended IS NOT FALSE AND c.attempt IS NULL GROUP BY c.worker, w.lost
)
SELECT c.task_id, c.version, c.worker, g.lost,
       EXISTS (SELECT FROM task_types tt WHERE tt.type = c.type AND tt.ambiguous = 'hold') AS hold,
       s.task_id IS NOT NULL AS suspect, COALESCE(s.begun = c.version, false) AS begun,
       COALESCE(cardinality(s.alone), 0) AS alone
FROM gone g JOIN claims c ON c.worker = g.worker AND c.attempt IS NULL
LEFT JOIN LATERAL (SELECT * FROM suspects WHERE task_id = c.task_id OFFSET 0) s ON true
WHERE g.before < :limit;

-- name: sweep
-- Apply the verdict to each of these claims: a lease that was ended never comes back. A loss is counted apart from
-- attempts, and does not count as one (:given_back). :rate is rows a second that may be published again, the first in
-- :start seconds.
WITH verdict AS MATERIALIZED (
    SELECT * FROM ROWS FROM (
        unnest(:states::text[], :events::text[], :given_back::integer[], :error_classes::text[], :reasons::text[],
               :notes::text[], :groups::uuid[], :alone::boolean[], :losses::integer[]),
        generate_series(1, cardinality(:ids::uuid[]))  -- which the planner takes for many
    ) AS v (state, event, given_back, error_class, reason, note, group_id, alone, losses, place)
), locked AS (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest AND t.state = 'running'
      AND t.version = (:versions::integer[])[width_bucket(t.id, :ids::uuid[])]
      AND t.worker = (:workers::uuid[])[width_bucket(t.id, :ids::uuid[])]
    ORDER BY t.id FOR UPDATE
), swept AS (
    UPDATE tasks t
    SET state = v.state, version = t.version + 1, losses = t.losses + v.losses, attempts = t.attempts - v.given_back,
        claim_version = CASE WHEN v.state <> 'dead' THEN t.claim_version END, updated_at = now(),
        due_at = CASE WHEN v.state = 'scheduled' THEN now() ELSE t.due_at END,
        error_class = v.error_class, error_reason = v.reason,
        timeline = timeline_add(
            t.timeline,
            (SELECT timeline_now()) || '|' || v.event || '|' || v.state || '|' || (t.attempts - v.given_back) || '|1|'
            || v.note)
    FROM verdict v
    WHERE v.place = width_bucket(t.id, :ids::uuid[])
      AND t.id = ANY(ARRAY(SELECT id FROM locked)) AND t.id BETWEEN :least AND :greatest
    RETURNING t.id, t.type, t.state, t.version, t.expires_at, t.worker, v.group_id, v.alone
), released AS (
    DELETE FROM claims c
    WHERE c.task_id = ANY(:ids) AND c.version = (:versions::integer[])[width_bucket(c.task_id, :ids::uuid[])]
      AND c.worker = (:workers::uuid[])[width_bucket(c.task_id, :ids::uuid[])]
), suspected AS (
    INSERT INTO suspects (task_id, group_id, lost, alone)
    SELECT id, group_id, worker, CASE WHEN alone THEN ARRAY[worker] ELSE '{}' END
    FROM swept WHERE state = 'scheduled' AND group_id IS NOT NULL ORDER BY id
    ON CONFLICT (task_id) DO UPDATE
    SET group_id = EXCLUDED.group_id, lost = EXCLUDED.lost, begun = NULL, alone = suspects.alone || EXCLUDED.alone
), cleared AS (
    DELETE FROM suspects s WHERE s.task_id = ANY(ARRAY(SELECT id FROM swept WHERE state <> 'scheduled'))
), waiting AS (
    INSERT INTO due (task_id, dead, type, version, publish_at, expires_at)
    SELECT id, state = 'dead', type, version,
           now() + make_interval(secs => :start + (row_number() OVER (ORDER BY id) - 1) / :rate::float8),
           expires_at
    FROM swept WHERE state IN ('scheduled', 'dead') ORDER BY id
    ON CONFLICT (task_id, dead) DO UPDATE
    SET version = EXCLUDED.version, publish_at = EXCLUDED.publish_at, expires_at = EXCLUDED.expires_at
)
SELECT type, state, count(*)::integer AS tasks FROM swept GROUP BY type, state;

-- name: end_leases_of
-- A supervisor ends the leases of its own former run, which it has stopped itself, or of one child (:pid) that died
-- unexpectedly: a task may be the cause.
WITH deposed AS (
    DELETE FROM leaders WHERE origin = :origin AND :pid::integer IS NULL
), locked AS (
    SELECT id FROM workers WHERE origin = :origin AND NOT ended AND (:pid::integer IS NULL OR pid = :pid)
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE workers SET ended = true, lost = :pid IS NOT NULL WHERE id = ANY(ARRAY(SELECT id FROM locked)) RETURNING id;

-- name: forget_workers
-- Workers whose lease was ended and that hold nothing.
DELETE FROM workers WHERE id = ANY(ARRAY(
    SELECT id FROM workers w WHERE ended AND NOT EXISTS (SELECT FROM claims c WHERE c.worker = w.id)
    FOR UPDATE SKIP LOCKED
)) RETURNING id;

-- name: cleared
-- Suspects whose task has ended. They remain only after a late outcome that waited for the sweep, and did not see what
-- that wrote, or after a worker of the release before, which does not know suspects.
SELECT s.task_id FROM suspects s
LEFT JOIN LATERAL (SELECT state FROM tasks WHERE id = s.task_id OFFSET 0) t ON true
WHERE t.state IS NULL OR t.state NOT IN ('scheduled', 'queued', 'running');

-- name: clear
DELETE FROM suspects WHERE task_id = ANY(ARRAY(
    SELECT task_id FROM suspects WHERE task_id = ANY(:ids) ORDER BY task_id FOR UPDATE SKIP LOCKED
)) RETURNING task_id;

-- name: audit_page
-- Of the next :limit outbox rows behind task :after, the published ones that Kafka would not deliver, by what is known
-- of its logs: their partitions, what the group reads next there, and their ends. `last` is where the next page begins,
-- NULL at the end.
WITH page AS MATERIALIZED (
    SELECT task_id, dead, type, version, publish_at, published_log, published_partition, published_offset
    FROM due WHERE task_id > :after ORDER BY task_id LIMIT :limit
), known AS MATERIALIZED (
    SELECT * FROM ROWS FROM (
        unnest(:types::text[], :logs::uuid[], :partitions::integer[], :nexts::bigint[], :ends::bigint[]),
        generate_series(1, cardinality(:types::text[]))  -- which the planner takes for many
    ) AS k (type, log, partition, next, after_last, place)
), suspect AS (
    SELECT p.task_id AS id, p.type, p.version, p.published_log, p.published_partition, p.published_offset
    FROM page p
    WHERE NOT p.dead AND p.publish_at = never() AND NOT EXISTS (
        SELECT FROM known k
        WHERE k.type = p.type AND k.log = p.published_log AND k.partition = p.published_partition
          AND p.published_offset >= k.next AND p.published_offset < k.after_last
    )
)
SELECT last.task_id AS last, s.*
FROM (SELECT task_id FROM page ORDER BY task_id DESC LIMIT 1) AS last LEFT JOIN suspect s ON true;

-- name: requeue
-- Kafka will not deliver the records of these published tasks: they are compared and set first, and published again at
-- :rate rows a second, the first in :start seconds. Claimed tasks are left alone. Outbox rows whose task has changed
-- since are dropped.
WITH waiting AS MATERIALIZED (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest
      AND t.version = (:versions::integer[])[width_bucket(t.id, :ids::uuid[])] AND t.state IN ('scheduled', 'queued')
), locked AS (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest
      AND t.version = (:versions::integer[])[width_bucket(t.id, :ids::uuid[])] AND t.state IN ('scheduled', 'queued')
    ORDER BY t.id FOR NO KEY UPDATE
), free AS MATERIALIZED (
    SELECT unclaimed(ARRAY(SELECT id FROM locked)) AS ids
), requeued AS (
    UPDATE tasks t
    SET state = 'scheduled', version = t.version + 1, updated_at = now(),
        timeline = timeline_add(t.timeline, ARRAY[
            (SELECT timeline_entry(d.published_at, 'published', 'queued', t.attempts, '') FROM due d
             WHERE d.task_id = t.id AND d.dead::integer = 0 AND (d.publish_at = never()) IS TRUE
               AND t.state = 'scheduled'),
            (SELECT timeline_now()) || '|not-owed|scheduled|' || t.attempts || '|1|'])
    WHERE t.id = ANY((SELECT ids FROM free)::uuid[]) AND t.id BETWEEN :least AND :greatest
    RETURNING t.id, t.type, t.version, t.expires_at
), stale AS MATERIALIZED (
    SELECT d.task_id FROM due d
    WHERE d.task_id = ANY(:ids) AND d.dead::integer = 0 AND (d.publish_at = never()) IS TRUE
      AND d.version = (:versions::integer[])[width_bucket(d.task_id, :ids::uuid[])]
      AND d.task_id NOT IN (SELECT id FROM waiting)
    FOR UPDATE SKIP LOCKED
), dropped AS (
    DELETE FROM due d WHERE d.task_id = ANY(ARRAY(SELECT task_id FROM stale)) AND d.dead::integer = 0
), pending AS (
    INSERT INTO due (task_id, type, version, publish_at, expires_at)
    SELECT id, type, version,
           now() + make_interval(secs => :start + (row_number() OVER (ORDER BY id) - 1) / :rate::float8),
           expires_at
    FROM requeued ORDER BY id
    ON CONFLICT (task_id, dead) DO UPDATE
    SET version = EXCLUDED.version, publish_at = EXCLUDED.publish_at, expires_at = EXCLUDED.expires_at
)
SELECT type, count(*)::integer AS tasks FROM requeued GROUP BY type;

-- name: backfill_place
-- Where the backfill of `due` has come to; no row once it is done.
SELECT min(after::text)::uuid AS after FROM backfill_published HAVING count(*) > 0;

-- name: backfill
-- Outbox rows of tasks that are `queued` without (migration 0013 says which), among the next :limit behind :after.
-- `last` is the last task that was looked at, NULL at the end.
WITH page AS MATERIALIZED (
    SELECT id, state FROM tasks WHERE id > :after ORDER BY id LIMIT :limit
), locked AS (
    SELECT t.id, t.type, t.version, t.published_log, t.published_partition, t.published_offset
    FROM tasks t WHERE t.id = ANY(ARRAY(SELECT id FROM page WHERE state = 'queued')) AND t.state = 'queued'
    ORDER BY t.id FOR NO KEY UPDATE
), made AS (
    -- Without expires_at: an expiry of the release before would delete it.
    INSERT INTO due (task_id, type, version, publish_at, published_log, published_partition, published_offset)
    SELECT id, type, version, never(), published_log, published_partition, published_offset FROM locked
    ON CONFLICT (task_id, dead) DO NOTHING
), last AS (
    SELECT id FROM page ORDER BY id DESC LIMIT 1
), moved AS (
    UPDATE backfill_published SET after = last.id FROM last
), done AS (
    DELETE FROM backfill_published WHERE NOT EXISTS (SELECT FROM last)
)
SELECT id AS last FROM last;

-- name: make_partitions
-- Partitions for this week and :weeks further ones. Only one process at a time makes them, so that none finds them half
-- made.
WITH turn AS MATERIALIZED (
    SELECT pg_advisory_xact_lock(hashtext('taskflux partitions')) IS NOT NULL AS ours
)
SELECT count(*) FILTER (WHERE create_task_partition(now() + week * interval '7 days'))::integer
FROM turn CROSS JOIN generate_series(0, :weeks::integer) AS week WHERE turn.ours;

-- name: forget_keys
WITH expired AS MATERIALIZED (
    SELECT tenant, key FROM idempotency_keys WHERE expires_at <= now() LIMIT :limit FOR UPDATE SKIP LOCKED
)
DELETE FROM idempotency_keys k USING expired e WHERE k.tenant = e.tenant AND k.key = e.key RETURNING k.key;

-- Measurements

-- name: measure_tasks
-- Pending publishes are read from their index alone.
SELECT waits.type, each.state, each.tasks, each.oldest
FROM (
    SELECT type, count(*) FILTER (WHERE publish_at <= now())::integer AS due,
           count(*) FILTER (WHERE publish_at > now() AND publish_at < never())::integer AS scheduled,
           extract(epoch FROM now() - min(publish_at))::float8 AS oldest
    FROM due WHERE NOT dead GROUP BY type
) AS waits
CROSS JOIN LATERAL (VALUES ('due', due, oldest), ('scheduled', scheduled, NULL)) AS each (state, tasks, oldest)
UNION ALL
SELECT type, 'running', count(*)::integer, NULL FROM claims GROUP BY type
UNION ALL
SELECT type, 'dead-due', count(*)::integer, NULL FROM due WHERE dead GROUP BY type;

-- name: measure_parked
SELECT type, state, count(*)::integer AS tasks FROM parked GROUP BY type, state;

-- name: measure_workers
-- A worker counts until its lease is ended.
SELECT COALESCE(type, regexp_replace(handler, '^process-', '')) AS type, count(*)::integer AS workers
FROM workers WHERE NOT ended GROUP BY 1;

-- name: measure_letters
SELECT error_class, count(*)::integer AS letters FROM dead_letters WHERE state = 'open' GROUP BY error_class;

-- name: measure_circuits
SELECT provider, open, COALESCE(error_class, '') AS error_class,
       GREATEST(0, extract(epoch FROM now() - opened_at))::float8 AS seconds
FROM circuits;

-- name: measure_types
SELECT type, provider FROM task_types;

-- name: needed
-- What the push scaler tells KEDA: of each type the tasks due soon, up to its limit, and those that run. The row without
-- a type counts what should have been published 5 s ago, but for what an open circuit holds back. No count goes further
-- than somebody asks, nor reads `tasks`.
WITH running AS MATERIALIZED (
    SELECT type, count(*)::integer AS claims FROM claims GROUP BY type
)
SELECT asked.type, soon.due, COALESCE(running.claims, 0) AS running, COALESCE(c.open, false) AS open,
       COALESCE(c.probe_at <= now() + make_interval(secs => :ahead), false) AS probe_soon
FROM unnest(:types::text[], :limits::bigint[]) AS asked (type, most)
LEFT JOIN running ON running.type = asked.type
LEFT JOIN task_types tt ON tt.type = asked.type
LEFT JOIN circuits c ON c.provider = tt.provider
CROSS JOIN LATERAL (
    SELECT count(*)::integer AS due FROM (
        SELECT FROM due d
        WHERE d.type = asked.type AND NOT d.dead AND d.publish_at <= now() + make_interval(secs => :ahead)
        ORDER BY d.publish_at LIMIT asked.most
    ) AS first
) AS soon
UNION ALL
SELECT NULL, count(*)::integer, 0, false, false
FROM (
    (SELECT FROM task_types tt
     LEFT JOIN circuits c ON c.provider = tt.provider
     CROSS JOIN LATERAL (
         SELECT FROM due d WHERE d.type = tt.type AND NOT d.dead AND d.publish_at < now() - interval '5 seconds'
         ORDER BY d.publish_at LIMIT :overdue::bigint
     ) AS late
     WHERE c.open IS NOT TRUE LIMIT :overdue::bigint)
    UNION ALL
    (SELECT FROM due WHERE dead AND publish_at < now() - interval '5 seconds' ORDER BY publish_at LIMIT :overdue::bigint)
) AS overdue;

-- Checks of `taskflux doctor`: they change nothing, and need no more rights than the handlers have.

-- name: checkup_server
SELECT current_setting('server_version_num')::integer AS version, current_setting('server_version') AS version_text,
       pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean AS read_only,
       current_setting('autovacuum')::boolean AS autovacuum, current_setting('track_counts')::boolean AS track_counts,
       current_setting('fsync')::boolean AS fsync, current_setting('synchronous_commit') AS synchronous_commit,
       pg_size_bytes(current_setting('max_wal_size')) AS max_wal_size,
       extract(epoch FROM current_setting('checkpoint_timeout')::interval)::float8 AS checkpoint_timeout,
       current_setting('wal_compression') AS wal_compression, current_setting('shared_buffers') AS shared_buffers,
       current_setting('log_statement') AS log_statement,
       current_setting('log_min_duration_statement') AS log_min_duration_statement,
       current_setting('commit_delay')::integer AS commit_delay,
       current_setting('max_connections')::integer AS max_connections,
       current_setting('superuser_reserved_connections')::integer
       + COALESCE(current_setting('reserved_connections', true)::integer, 0) AS reserved;

-- name: checkup_activity
-- What the server has done since its statistics were reset.
SELECT c.num_timed AS timed, c.num_requested AS requested, extract(epoch FROM now() - c.stats_reset)::float8 AS seconds,
       w.wal_bytes::float8 AS wal, w.wal_fpi AS pages, extract(epoch FROM now() - w.stats_reset)::float8 AS wal_seconds,
       d.blks_read AS read, d.blks_hit AS hit
FROM pg_stat_checkpointer c, pg_stat_wal w, pg_stat_database d WHERE d.datname = current_database();

-- name: checkup_activity_before_17
SELECT c.checkpoints_timed AS timed, c.checkpoints_req AS requested,
       extract(epoch FROM now() - c.stats_reset)::float8 AS seconds,
       w.wal_bytes::float8 AS wal, w.wal_fpi AS pages, extract(epoch FROM now() - w.stats_reset)::float8 AS wal_seconds,
       d.blks_read AS read, d.blks_hit AS hit
FROM pg_stat_bgwriter c, pg_stat_wal w, pg_stat_database d WHERE d.datname = current_database();

-- name: checkup_indexes
SELECT next_index_step(:keys) IS NULL AS complete;

-- name: checkup_clock
SELECT extract(epoch FROM clock_timestamp())::float8 AS now;

-- name: checkup_schema
SELECT version FROM schema_migrations ORDER BY version;

-- name: checkup_connections
-- Ours by the name of their process (deployment@host:pid), all others under NULL. This connection is not counted.
SELECT CASE WHEN application_name LIKE '%@%:%' THEN application_name END AS label, count(*)::integer AS connections
FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name <> 'taskflux doctor'
GROUP BY label;

-- name: checkup_oldest_transaction
-- Seconds that the oldest open transaction keeps vacuum from cleaning up.
SELECT GREATEST(max(extract(epoch FROM now() - xact_start)), 0)::float8 AS seconds
FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend' AND state <> 'idle';

-- name: checkup_partitions
-- For this week and the :weeks_ahead following ones: whether their partition exists.
SELECT to_char(first, 'IYYY"w"IW') AS week, to_regclass('tasks_' || to_char(first, 'IYYY"w"IW')) IS NOT NULL AS exists
FROM generate_series(0, :weeks_ahead::integer) AS ahead
CROSS JOIN LATERAL (SELECT date_trunc('week', now() AT TIME ZONE 'UTC') + ahead * interval '7 days' AS first) AS w;

-- name: checkup_strays
-- Whether a task is in the default partition, which pruning does not drop.
SELECT EXISTS (SELECT FROM tasks_default) AS strays;

-- name: checkup_leader
SELECT extract(epoch FROM expires_at - now())::float8 AS left FROM leaders WHERE name = 'relay';

-- name: checkup_workers
-- How many workers are alive, and how many have been silent for three leases (:lease seconds each) but hold tasks.
SELECT handler, count(*) FILTER (WHERE NOT ended AND beat_at > now() - make_interval(secs => :lease))::integer AS alive,
       count(*) FILTER (WHERE beat_at <= now() - make_interval(secs => 3 * :lease)
                        AND EXISTS (SELECT FROM claims c WHERE c.worker = w.id))::integer AS lost
FROM workers w GROUP BY handler ORDER BY handler;

-- name: checkup_circuits
SELECT provider, error_class, reason, GREATEST(0, extract(epoch FROM now() - opened_at))::float8 AS seconds
FROM circuits WHERE open ORDER BY provider;

-- name: checkup_due
-- Overdue outbox rows: the longest wait in seconds and the number, for tasks and dead letters; without open circuits.
SELECT dead, max(extract(epoch FROM now() - publish_at))::float8 AS seconds, count(*)::integer AS tasks
FROM due d LEFT JOIN task_types tt ON tt.type = d.type
LEFT JOIN circuits c ON c.provider = tt.provider AND c.open
WHERE publish_at <= now() AND (dead OR c.provider IS NULL)
GROUP BY dead;
