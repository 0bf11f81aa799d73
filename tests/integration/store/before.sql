-- Statements of the release before (commit 20a089b), unchanged but for their comments: its processes run them on the
-- schema of the next release, while both are at work. `before.py` runs them.

-- name: end_lease
UPDATE workers SET ended = true WHERE id = :id;

-- name: claim
WITH lease AS MATERIALIZED (
    SELECT id FROM workers WHERE id = :worker AND NOT ended FOR KEY SHARE
), suspected AS MATERIALIZED (
    SELECT array_agg(task_id) AS ids FROM suspects WHERE task_id = ANY(:ids)
), locked AS (
    SELECT t.id FROM tasks t
    WHERE EXISTS (SELECT FROM lease) AND t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest
      AND t.version = (:versions::integer[])[width_bucket(t.id, :ids::uuid[])]
      AND t.state IN ('scheduled', 'queued') AND t.type = :type
      AND (:suspects OR array_position((SELECT ids FROM suspected), t.id) IS NULL)
    ORDER BY t.id FOR UPDATE
), claimed AS (
    UPDATE tasks t
    SET state = 'running', version = t.version + 1, claim_version = t.version + 1, attempts = t.attempts + 1,
        worker = :worker, updated_at = now(),
        timeline = timeline_add(
            t.timeline, (SELECT timeline_now()) || '|claimed|running|' || (t.attempts + 1) || '|1|' || :label)
    WHERE t.id = ANY(ARRAY(SELECT id FROM locked)) AND t.id BETWEEN :least AND :greatest
    RETURNING t.id, t.version, t.attempts AS attempt, t.max_attempts, t.handbacks AS releases, t.replays, t.tenant,
              t.key, CASE WHEN octet_length(t.payload) <= :carried THEN t.payload END AS payload,
              octet_length(t.payload) AS size, t.metadata, t.result AS progress, t.traceparent, t.attempt_span,
              t.created_at,
              COALESCE(t.expires_at <= now(), false) AS expired,
              GREATEST(0, extract(epoch FROM now() - t.due_at))::float8 AS waited
), leased AS (
    INSERT INTO claims (task_id, worker, type, version)
    SELECT id, :worker, :type, version FROM claimed ORDER BY id
    ON CONFLICT (task_id) DO UPDATE SET worker = EXCLUDED.worker, version = EXCLUDED.version
)
SELECT c.* FROM lease LEFT JOIN claimed c ON true;

-- name: settle
WITH input AS MATERIALIZED (
    SELECT * FROM unnest(
        :versions::integer[], :states::text[], :events::text[], :delays::float8[], :given_back::integer[],
        :releases::integer[], :results::text[], :error_classes::text[], :reasons::text[], :notes::text[],
        :spans::text[]
    ) WITH ORDINALITY AS i (
        version, state, event, delay, given_back, handbacks, result, error_class, reason, note, span, place
    )
), locked AS (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest
      AND t.claim_version = (:versions::integer[])[width_bucket(t.id, :ids::uuid[])]
      AND (t.state = 'running' AND t.version = t.claim_version
           OR t.state IN ('scheduled', 'queued', 'uncertain')
              AND (:states::text[])[width_bucket(t.id, :ids::uuid[])] IN ('succeeded', 'dead'))
    ORDER BY t.id FOR UPDATE
), settled AS (
    UPDATE tasks t
    SET state = i.state, version = t.version + (t.state <> 'running')::integer, claim_version = NULL, worker = NULL,
        attempts = t.attempts + (t.state IN ('scheduled', 'queued'))::integer - i.given_back, handbacks = i.handbacks,
        updated_at = now(),
        due_at = CASE WHEN i.state = 'scheduled' THEN now() + make_interval(secs => i.delay) ELSE t.due_at END,
        result = COALESCE(i.result, t.result), error_class = i.error_class, error_reason = i.reason,
        attempt_span = COALESCE(i.span, t.attempt_span),
        timeline = timeline_add(
            t.timeline,
            (SELECT timeline_now()) || '|'
            || CASE WHEN t.state = 'running' THEN i.event WHEN i.state = 'succeeded' THEN 'late-success'
                    ELSE 'late-death' END
            || '|' || i.state || '|'
            || (t.attempts + (t.state IN ('scheduled', 'queued'))::integer - i.given_back) || '|1|' || i.note)
    FROM input i
    WHERE i.place = width_bucket(t.id, :ids::uuid[])
      AND t.id = ANY(ARRAY(SELECT id FROM locked)) AND t.id BETWEEN :least AND :greatest
    RETURNING t.id, t.type, t.state, t.version, t.due_at, t.expires_at, i.event, t.error_class,
              t.version <> i.version AS late, GREATEST(0, extract(epoch FROM now() - t.created_at))::float8 AS age
), released AS (
    DELETE FROM claims c
    WHERE c.task_id = ANY(:ids) AND c.version = (:versions::integer[])[width_bucket(c.task_id, :ids::uuid[])]
), cleared AS (
    DELETE FROM suspects s WHERE s.task_id = ANY(ARRAY(
        SELECT id FROM settled WHERE event <> 'handed-back' OR error_class IS NOT NULL
    ))
), waiting AS (
    INSERT INTO due (task_id, dead, type, version, publish_at, expires_at)
    SELECT id, state = 'dead', type, version, CASE WHEN state = 'dead' THEN now() ELSE due_at END, expires_at
    FROM settled WHERE state IN ('scheduled', 'dead') ORDER BY id
    ON CONFLICT (task_id, dead) DO UPDATE SET version = EXCLUDED.version, publish_at = EXCLUDED.publish_at
)
SELECT id, late, age FROM settled;

-- name: take_due
WITH waiting AS MATERIALIZED (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest
      AND t.version = (:versions::integer[])[width_bucket(t.id, :ids::uuid[])] AND t.state = 'scheduled'
), locked AS (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest
      AND t.version = (:versions::integer[])[width_bucket(t.id, :ids::uuid[])] AND t.state = 'scheduled'
    ORDER BY t.id FOR UPDATE SKIP LOCKED
), bumped AS (
    UPDATE tasks t SET version = t.version + 1
    WHERE t.id = ANY(ARRAY(SELECT id FROM locked)) AND t.id BETWEEN :least AND :greatest
    RETURNING t.id, t.version, t.key, t.traceparent
), moved AS (
    UPDATE due d SET publish_at = now() + make_interval(secs => :grace), version = d.version + 1
    WHERE d.task_id = ANY(ARRAY(SELECT id FROM bumped)) AND NOT d.dead
), stale AS MATERIALIZED (
    SELECT d.task_id FROM due d
    WHERE d.task_id = ANY(:ids) AND NOT d.dead
      AND d.version = (:versions::integer[])[width_bucket(d.task_id, :ids::uuid[])]
      AND d.task_id NOT IN (SELECT id FROM waiting)
    FOR UPDATE SKIP LOCKED
), dropped AS (
    DELETE FROM due d WHERE d.task_id = ANY(ARRAY(SELECT task_id FROM stale)) AND NOT d.dead
)
SELECT id, version, key, traceparent FROM bumped;

-- name: confirm
WITH input AS MATERIALIZED (
    SELECT * FROM unnest(:logs::uuid[], :partitions::integer[], :offsets::bigint[])
        WITH ORDINALITY AS i (log, "partition", "offset", place)
), locked AS (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest
      AND t.version = (:versions::integer[])[width_bucket(t.id, :ids::uuid[])] AND t.state = 'scheduled'
    ORDER BY t.id FOR UPDATE
), queued AS (
    UPDATE tasks t
    SET state = 'queued', updated_at = now(), published_log = i.log, published_partition = i."partition",
        published_offset = i."offset",
        timeline = timeline_add(t.timeline, (SELECT timeline_now()) || '|published|queued|' || t.attempts || '|1|')
    FROM input i
    WHERE i.place = width_bucket(t.id, :ids::uuid[])
      AND t.id = ANY(ARRAY(SELECT id FROM locked)) AND t.id BETWEEN :least AND :greatest
    RETURNING t.id
), done AS MATERIALIZED (
    SELECT d.task_id FROM due d
    WHERE d.task_id = ANY(:ids) AND NOT d.dead
      AND d.version = (:versions::integer[])[width_bucket(d.task_id, :ids::uuid[])]
      -- After the tasks are locked: PostgreSQL runs a CTE that nothing reads last.
      AND (SELECT count(*) FROM queued) >= 0
    ORDER BY d.task_id FOR UPDATE SKIP LOCKED
)
DELETE FROM due d WHERE d.task_id = ANY(ARRAY(SELECT task_id FROM done)) AND NOT d.dead;

-- name: expired_now
SELECT task_id, version FROM due WHERE NOT dead AND expires_at <= now() ORDER BY expires_at LIMIT :limit;

-- name: expire_waiting
WITH waiting AS MATERIALIZED (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest
      AND t.version = (:versions::integer[])[width_bucket(t.id, :ids::uuid[])] AND t.state = 'scheduled'
), locked AS (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest
      AND t.version = (:versions::integer[])[width_bucket(t.id, :ids::uuid[])] AND t.state = 'scheduled'
    ORDER BY t.id FOR UPDATE SKIP LOCKED
), expired AS (
    UPDATE tasks t
    SET state = 'dead', version = t.version + 1, updated_at = now(), error_class = 'Expired',
        error_reason = 'it was still waiting when its expiresAt passed',
        timeline = timeline_add(t.timeline, (SELECT timeline_now()) || '|died|dead|' || t.attempts || '|1|Expired')
    WHERE t.id = ANY(ARRAY(SELECT id FROM locked)) AND t.id BETWEEN :least AND :greatest
    RETURNING t.id, t.type, t.version
), stale AS MATERIALIZED (
    SELECT d.task_id FROM due d
    WHERE d.task_id = ANY(:ids) AND NOT d.dead
      AND d.version = (:versions::integer[])[width_bucket(d.task_id, :ids::uuid[])]
      AND d.task_id NOT IN (SELECT id FROM waiting)
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM due d
    WHERE d.task_id = ANY(ARRAY(SELECT id FROM expired UNION ALL SELECT task_id FROM stale)) AND NOT d.dead
), cleared AS (
    DELETE FROM suspects s WHERE s.task_id = ANY(ARRAY(SELECT id FROM expired))
), pending AS (
    INSERT INTO due (task_id, dead, type, version, publish_at)
    SELECT id, true, type, version, now() FROM expired ORDER BY id
    ON CONFLICT (task_id, dead) DO UPDATE SET version = EXCLUDED.version, publish_at = EXCLUDED.publish_at
)
SELECT id, type FROM expired;

-- name: cancel
WITH locked AS (
    SELECT id FROM tasks WHERE id = :id AND tenant = :tenant AND state IN ('scheduled', 'queued') FOR UPDATE
), cancelled AS (
    UPDATE tasks t
    SET state = 'cancelled', version = t.version + 1, claim_version = NULL, worker = NULL, updated_at = now(),
        timeline = timeline_add(
            t.timeline, (SELECT timeline_now()) || '|cancelled|cancelled|' || t.attempts || '|1|' || :note)
    FROM locked WHERE t.id = locked.id AND t.id = :id
    RETURNING t.id
), gone AS (
    DELETE FROM due d USING cancelled c WHERE d.task_id = c.id AND d.task_id = :id AND NOT d.dead
), cleared AS (
    DELETE FROM suspects s USING cancelled c WHERE s.task_id = c.id AND s.task_id = :id
)
SELECT id FROM cancelled;

-- name: lead
INSERT INTO leaders (name, holder, expires_at, origin)
VALUES (:name, :holder, now() + make_interval(secs => :seconds), :origin)
ON CONFLICT (name) DO UPDATE SET holder = EXCLUDED.holder, expires_at = EXCLUDED.expires_at, origin = EXCLUDED.origin
WHERE leaders.holder = EXCLUDED.holder OR leaders.expires_at <= now()
   OR leaders.expires_at > clock_timestamp() + make_interval(secs => :seconds)  -- now() is from before waiting for the row
RETURNING holder;

-- name: end_silent
WITH silent AS (
    SELECT id FROM workers
    WHERE id = ANY(:ids) AND beat = (:beats::bigint[])[width_bucket(id, :ids::uuid[])] AND NOT ended
    ORDER BY id FOR UPDATE SKIP LOCKED
)
UPDATE workers w SET ended = true, lost = true
WHERE w.id = ANY(ARRAY(SELECT id FROM silent))
   OR w.id = ANY(:overdue) AND w.beat = (:beats::bigint[])[width_bucket(w.id, :ids::uuid[])] AND NOT w.ended
RETURNING w.label, w.in_flight;

-- name: lapsed
WITH gone AS MATERIALIZED (
    SELECT c.worker, w.lost IS NOT FALSE AS lost, sum(count(*)) OVER (ORDER BY c.worker) - count(*) AS before
    FROM claims c LEFT JOIN workers w ON w.id = c.worker
    WHERE w.ended IS NOT FALSE GROUP BY c.worker, w.lost
)
SELECT c.task_id, c.version, c.worker, g.lost,
       EXISTS (SELECT FROM task_types tt WHERE tt.type = c.type AND tt.ambiguous = 'hold') AS hold,
       s.task_id IS NOT NULL AS suspect, COALESCE(s.begun = c.version, false) AS begun,
       COALESCE(cardinality(s.alone), 0) AS alone
FROM gone g JOIN claims c ON c.worker = g.worker
LEFT JOIN LATERAL (SELECT * FROM suspects WHERE task_id = c.task_id OFFSET 0) s ON true
WHERE g.before < :limit;

-- name: sweep
WITH verdict AS MATERIALIZED (
    SELECT * FROM unnest(
        :states::text[], :events::text[], :given_back::integer[], :error_classes::text[], :reasons::text[],
        :notes::text[], :groups::uuid[], :alone::boolean[], :losses::integer[]
    ) WITH ORDINALITY AS v (state, event, given_back, error_class, reason, note, group_id, alone, losses, place)
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
    ON CONFLICT (task_id, dead) DO UPDATE SET version = EXCLUDED.version, publish_at = EXCLUDED.publish_at
)
SELECT type, state, count(*)::integer AS tasks FROM swept GROUP BY type, state;

-- name: audit_page
WITH page AS MATERIALIZED (
    SELECT id, type, state, version, published_log, published_partition, published_offset
    FROM tasks WHERE id > :after ORDER BY id LIMIT :limit
), last AS (
    SELECT id FROM page ORDER BY id DESC LIMIT 1
)
SELECT last.id AS last, p.id, p.type, p.version, p.published_log, p.published_partition, p.published_offset
FROM last LEFT JOIN page p ON p.state = 'queued';

-- name: requeue
WITH locked AS (
    SELECT t.id FROM tasks t
    WHERE t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest
      AND t.version = (:versions::integer[])[width_bucket(t.id, :ids::uuid[])] AND t.state = 'queued'
    ORDER BY t.id FOR UPDATE
), requeued AS (
    UPDATE tasks t
    SET state = 'scheduled', version = t.version + 1, updated_at = now(),
        timeline = timeline_add(t.timeline, (SELECT timeline_now()) || '|not-owed|scheduled|' || t.attempts || '|1|')
    WHERE t.id = ANY(ARRAY(SELECT id FROM locked)) AND t.id BETWEEN :least AND :greatest
    RETURNING t.id, t.type, t.version, t.expires_at
), waiting AS (
    INSERT INTO due (task_id, type, version, publish_at, expires_at)
    SELECT id, type, version,
           now() + make_interval(secs => :start + (row_number() OVER (ORDER BY id) - 1) / :rate::float8),
           expires_at
    FROM requeued ORDER BY id
    ON CONFLICT (task_id, dead) DO UPDATE SET version = EXCLUDED.version, publish_at = EXCLUDED.publish_at
)
SELECT type, count(*)::integer AS tasks FROM requeued GROUP BY type;
