-- What `taskflux doctor` asks. Nothing here changes anything, or needs more rights than the handlers have.

-- name: checkup_server
SELECT current_setting('server_version_num')::integer AS version, current_setting('server_version') AS version_text,
       pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean AS read_only,
       current_setting('autovacuum')::boolean AS autovacuum, current_setting('track_counts')::boolean AS track_counts,
       current_setting('fsync')::boolean AS fsync, current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('max_connections')::integer AS max_connections,
       current_setting('superuser_reserved_connections')::integer
       + COALESCE(current_setting('reserved_connections', true)::integer, 0) AS reserved;

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
