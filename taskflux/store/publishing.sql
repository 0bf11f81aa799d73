-- The outbox: pending publishes, which process publishes them, what Kafka has confirmed; and the circuits that pause
-- them. A row that Kafka has confirmed stays until its task is claimed, with `never()` as its publish_at.
-- A statement that has ids compares that with IS TRUE, and `dead` as an integer, so that the planner does not look
-- through the indexes by time: a plan from when the outbox was empty takes any of them for as good.

-- name: next_due
-- Seconds until the next row of each type is due (negative: overdue), if within :within seconds. Dead letters have the
-- type NULL. Beyond that are the index entries of promises that were confirmed a moment ago: each is looked up until it
-- is known to be dead.
SELECT type, wait FROM next_due(:within);

-- name: due_now
SELECT task_id, version FROM due
WHERE type = :type AND NOT dead AND publish_at <= now() ORDER BY publish_at LIMIT :limit;

-- name: probes_now
-- Tasks that probe whether a provider works again: those that it has not failed for yet, and then those that it has
-- failed for least often. Nothing is locked.
(SELECT d.task_id, d.version
 FROM due d CROSS JOIN LATERAL (SELECT handbacks FROM tasks WHERE id = d.task_id OFFSET 0) AS t
 WHERE d.type = :type AND NOT d.dead AND d.publish_at <= now() AND t.handbacks = 0
 ORDER BY d.publish_at LIMIT :limit)
UNION ALL
(SELECT d.task_id, d.version
 FROM (SELECT task_id, version, publish_at FROM due
       WHERE type = :type AND NOT dead AND publish_at <= now() ORDER BY publish_at LIMIT 1000) AS d
 CROSS JOIN LATERAL (SELECT handbacks FROM tasks WHERE id = d.task_id OFFSET 0) AS t
 WHERE t.handbacks > 0
 ORDER BY t.handbacks, d.publish_at LIMIT :limit)
LIMIT :limit;

-- name: take_due
-- A process takes rows before it publishes them: publish_at moves by the grace and the version rises. Rows whose task
-- has changed since (it was cancelled, or it ended by a late outcome) are dropped; claimed tasks are left alone.
WITH waiting AS MATERIALIZED (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest
      AND t.version = (:versions::integer[])[width_bucket(t.id, :ids::uuid[])] AND t.state = 'scheduled'
), locked AS (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest
      AND t.version = (:versions::integer[])[width_bucket(t.id, :ids::uuid[])] AND t.state = 'scheduled'
    ORDER BY t.id FOR NO KEY UPDATE SKIP LOCKED
), free AS MATERIALIZED (
    SELECT unclaimed(ARRAY(SELECT id FROM locked)) AS ids
), moved AS (
    -- Its recheck is what tells a row that was confirmed meanwhile: a confirmation does not take the task's lock.
    UPDATE due d SET publish_at = now() + make_interval(secs => :grace), version = d.version + 1
    WHERE d.task_id = ANY((SELECT ids FROM free)::uuid[]) AND d.dead::integer = 0 AND (d.publish_at <= now()) IS TRUE
      AND d.version = (:versions::integer[])[width_bucket(d.task_id, :ids::uuid[])]
    RETURNING d.task_id
), bumped AS (
    UPDATE tasks t SET version = t.version + 1, updated_at = now()
    WHERE t.id = ANY(ARRAY(SELECT task_id FROM moved)) AND t.id BETWEEN :least AND :greatest
    RETURNING t.id, t.version, t.key, t.traceparent
), stale AS MATERIALIZED (
    SELECT d.task_id FROM due d
    WHERE d.task_id = ANY(:ids) AND d.dead::integer = 0 AND (d.publish_at < never()) IS TRUE
      AND d.version = (:versions::integer[])[width_bucket(d.task_id, :ids::uuid[])]
      AND d.task_id NOT IN (SELECT id FROM waiting)
    FOR UPDATE SKIP LOCKED
), dropped AS (
    DELETE FROM due d WHERE d.task_id = ANY(ARRAY(SELECT task_id FROM stale)) AND d.dead::integer = 0
)
SELECT id, version, key, traceparent FROM bumped;

-- name: dead_now
SELECT task_id FROM due WHERE dead AND publish_at <= now() ORDER BY publish_at LIMIT :limit;

-- name: take_dead
-- Dead letters to be published to their topic. (task id, version) identifies each, so a repeat does no harm.
WITH candidates AS MATERIALIZED (
    SELECT task_id, version FROM due
    WHERE task_id = ANY(:ids) AND dead AND publish_at <= now() ORDER BY task_id FOR UPDATE SKIP LOCKED
), known AS MATERIALIZED (
    SELECT t.id, t.type, t.error_class, t.attempts, t.traceparent FROM tasks t
    WHERE t.id = ANY(ARRAY(SELECT task_id FROM candidates)) AND t.id BETWEEN :least AND :greatest
), moved AS (
    UPDATE due d SET publish_at = now() + make_interval(secs => :grace)
    WHERE d.task_id = ANY(ARRAY(SELECT id FROM known)) AND d.dead
), stale AS (
    DELETE FROM due d
    WHERE d.task_id = ANY(ARRAY(SELECT task_id FROM candidates EXCEPT SELECT id FROM known)) AND d.dead
)
SELECT k.id, c.version, k.type, COALESCE(NULLIF(k.error_class, ''), 'Unknown') AS error_class, k.attempts,
       k.traceparent
FROM known k JOIN candidates c ON c.task_id = k.id;

-- name: confirm
-- Kafka has the records: their outbox rows say where, unless the task was claimed or published again meanwhile. The
-- wide rows are not touched. The commit does not wait for the disk, in this transaction alone: a crash of PostgreSQL may
-- undo the last confirmations, and their records are published again (docs/protocol.md). Where all have one version
-- or log, :version or :log is that, and the array is empty.
WITH pending AS MATERIALIZED (
    SELECT d.task_id FROM due d
    WHERE d.task_id = ANY(:ids) AND d.dead::integer = 0 AND (d.publish_at < never()) IS TRUE
      AND d.version = COALESCE(:version::integer, (:versions::integer[])[width_bucket(d.task_id, :ids::uuid[])])
    ORDER BY d.task_id FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE due d
SET publish_at = never(), published_at = now(),
    published_log = COALESCE(:log::uuid, (:logs::uuid[])[width_bucket(d.task_id, :ids::uuid[])]),
    published_partition = (:partitions::integer[])[width_bucket(d.task_id, :ids::uuid[])],
    published_offset = (:offsets::bigint[])[width_bucket(d.task_id, :ids::uuid[])]
WHERE d.task_id = ANY(ARRAY(SELECT task_id FROM pending)) AND d.dead::integer = 0
  AND (SELECT set_config('synchronous_commit', 'off', true)) IS NOT NULL;

-- name: confirm_dead
WITH done AS MATERIALIZED (
    SELECT d.task_id FROM due d JOIN unnest(:ids::uuid[], :versions::integer[]) AS i (id, version) ON i.id = d.task_id
    WHERE d.task_id = ANY(:ids) AND d.dead AND d.version = i.version ORDER BY d.task_id FOR UPDATE OF d
)
DELETE FROM due d WHERE d.task_id = ANY(ARRAY(SELECT task_id FROM done)) AND d.dead;

-- name: expired_now
SELECT task_id, version FROM due
WHERE NOT dead AND expires_at <= now() AND publish_at < timestamptz '9999-12-31 23:59:59.999999+00'
ORDER BY expires_at LIMIT :limit;

-- name: expire_waiting
-- Tasks that waited beyond their expiresAt. Claimed ones are left alone.
WITH waiting AS MATERIALIZED (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest
      AND t.version = (:versions::integer[])[width_bucket(t.id, :ids::uuid[])] AND t.state = 'scheduled'
), locked AS (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest
      AND t.version = (:versions::integer[])[width_bucket(t.id, :ids::uuid[])] AND t.state = 'scheduled'
    ORDER BY t.id FOR NO KEY UPDATE SKIP LOCKED
), free AS MATERIALIZED (
    SELECT unclaimed(ARRAY(SELECT id FROM locked)) AS ids
), withdrawn AS (
    -- As in take_due: one that was confirmed meanwhile stays.
    DELETE FROM due d
    WHERE d.task_id = ANY((SELECT ids FROM free)::uuid[]) AND d.dead::integer = 0 AND (d.publish_at < never()) IS TRUE
      AND d.version = (:versions::integer[])[width_bucket(d.task_id, :ids::uuid[])]
    RETURNING d.task_id
), expired AS (
    UPDATE tasks t
    SET state = 'dead', version = t.version + 1, updated_at = now(), error_class = 'Expired',
        error_reason = 'it was still waiting when its expiresAt passed',
        timeline = timeline_add(t.timeline, (SELECT timeline_now()) || '|died|dead|' || t.attempts || '|1|Expired')
    WHERE t.id = ANY(ARRAY(SELECT task_id FROM withdrawn)) AND t.id BETWEEN :least AND :greatest
    RETURNING t.id, t.type, t.version
), stale AS MATERIALIZED (
    SELECT d.task_id FROM due d
    WHERE d.task_id = ANY(:ids) AND d.dead::integer = 0 AND (d.publish_at < never()) IS TRUE
      AND d.version = (:versions::integer[])[width_bucket(d.task_id, :ids::uuid[])]
      AND d.task_id NOT IN (SELECT id FROM waiting)
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM due d WHERE d.task_id = ANY(ARRAY(SELECT task_id FROM stale)) AND d.dead::integer = 0
), cleared AS (
    DELETE FROM suspects s WHERE s.task_id = ANY(ARRAY(SELECT id FROM expired))
), pending AS (
    INSERT INTO due (task_id, dead, type, version, publish_at)
    SELECT id, true, type, version, now() FROM expired ORDER BY id
    ON CONFLICT (task_id, dead) DO UPDATE SET version = EXCLUDED.version, publish_at = EXCLUDED.publish_at
)
SELECT id, type FROM expired;

-- Circuits

-- name: list_circuits
SELECT provider, open, reason, closed_at, extract(epoch FROM now() - closed_at)::float8 AS closed_for,
       served_at, extract(epoch FROM now() - served_at)::float8 AS served_for
FROM circuits;

-- name: open_circuit
-- A row is returned only to the call that opened it.
INSERT INTO circuits (provider, open, error_class, reason, opened_at, probes, probe_at)
VALUES (:provider, true, :error_class, :reason, now(), 0, now() + make_interval(secs => :first_probe))
ON CONFLICT (provider) DO UPDATE
SET open = true, error_class = EXCLUDED.error_class, reason = EXCLUDED.reason, opened_at = now(), probes = 0,
    breadth = 1, probe_at = EXCLUDED.probe_at
WHERE NOT circuits.open
RETURNING provider;

-- name: close_circuit
UPDATE circuits SET open = false, closed_at = now(), served_at = CASE WHEN :served THEN now() ELSE served_at END
WHERE provider = :provider AND open RETURNING provider;

-- name: take_probe
-- The right to send the next probe, and its number of tasks. The wait doubles from :first_probe seconds up to
-- :last_probe; a longer one was written before the clock was set back.
UPDATE circuits
SET probes = probes + 1,
    probe_at = now() + make_interval(
        secs => LEAST(:last_probe::float8, :first_probe::float8 * 2 ^ LEAST(probes + 1, 30)))
WHERE provider = :provider AND open
  AND (probe_at <= now() OR probe_at > now() + make_interval(secs => :last_probe::float8))
RETURNING breadth;

-- name: probe_failed
-- The error of the last probe's tasks, and the number of tasks of the next one. All tasks of a probe write the same, so
-- that it does not matter how many of them do.
UPDATE circuits SET error_class = :error_class, reason = :reason,
    breadth = CASE WHEN :refused THEN LEAST(:most_probes, 2 ^ LEAST(probes, 30))::integer ELSE 1 END
WHERE provider = :provider AND open;
