-- Leases, claims and settlements.

-- name: begin_lease
-- A worker begins, under a new identity.
INSERT INTO workers (id, handler, label, origin, pid, in_flight, type)
VALUES (:id, :handler, :label, :origin, :pid, :in_flight, :type);

-- name: beat
-- One row renews all claims of a worker. Only the number is compared: beat_at is for people, and for relays of the
-- release before. No row is returned once the lease was ended.
UPDATE workers SET beat = beat + 1, beat_at = now(), in_flight = :in_flight WHERE id = :id AND NOT ended RETURNING id;

-- name: end_lease
-- A worker stops: what it could not settle is freed at once.
UPDATE workers SET ended = true WHERE id = :id;

-- name: claim
-- A batch of records becomes running tasks of one worker; the payload comes with the claim, unless it is large.
-- Suspects are claimed as the members of a group (:suspects) or not at all. No row is returned once the worker's lease
-- was ended, one of NULLs where nothing could be claimed. The lock lets the worker beat meanwhile, and keeps its lease
-- from being ended (`end_silent`).
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

-- name: reclaim
-- Tasks that a claim of ours took although its answer was lost, unless our lease was ended since.
SELECT t.id, t.version, t.attempts AS attempt, t.max_attempts, t.handbacks AS releases, t.replays, t.tenant,
       t.key, CASE WHEN octet_length(t.payload) <= :carried THEN t.payload END AS payload,
       octet_length(t.payload) AS size, t.metadata, t.result AS progress, t.traceparent, t.attempt_span, t.created_at,
       COALESCE(t.expires_at <= now(), false) AS expired,
       GREATEST(0, extract(epoch FROM now() - t.due_at))::float8 AS waited
FROM tasks t
WHERE t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest AND t.state = 'running' AND t.worker = :worker
  AND t.claim_version = t.version AND t.version = (:versions::integer[])[width_bucket(t.id, :ids::uuid[])] + 1
  AND EXISTS (SELECT FROM workers WHERE id = :worker AND NOT ended);

-- name: payload
-- A large payload, once there is room for it.
SELECT payload FROM tasks WHERE id = :id;

-- name: held
-- What a worker has claimed and not settled.
SELECT task_id, version FROM claims WHERE worker = :worker;

-- name: suspected
-- The current members of the groups of these tasks. Only groups in which one of these tasks can still be claimed at the
-- version of its record.
WITH asked AS MATERIALIZED (
    SELECT s.task_id, s.group_id FROM suspects s WHERE s.task_id = ANY(:ids)
), named AS MATERIALIZED (
    SELECT DISTINCT a.group_id
    FROM asked a CROSS JOIN LATERAL (SELECT version, state FROM tasks WHERE id = a.task_id OFFSET 0) t
    WHERE t.version = (:versions::integer[])[width_bucket(a.task_id, :ids::uuid[])]
      AND t.state IN ('scheduled', 'queued')
)
SELECT s.group_id, t.id, t.version
FROM suspects s CROSS JOIN LATERAL (SELECT id, version, state FROM tasks WHERE id = s.task_id OFFSET 0) t
WHERE s.group_id = ANY(ARRAY(SELECT group_id FROM named)) AND t.state IN ('scheduled', 'queued');

-- name: begin_alone
-- From now on these claims run alone: if their worker is lost, one of them may be the cause.
WITH free AS MATERIALIZED (
    SELECT task_id FROM suspects WHERE task_id = ANY(:ids) ORDER BY task_id FOR UPDATE SKIP LOCKED
)
UPDATE suspects SET begun = GREATEST(begun, (:versions::integer[])[width_bucket(task_id, :ids::uuid[])])
WHERE task_id = ANY(ARRAY(SELECT task_id FROM free));

-- name: clear_own_suspects
-- This worker is alive although its lease expired: the tasks that it held are not suspects, including those that still
-- wait for the sweep.
WITH found AS (
    UPDATE workers SET lost = false WHERE id = :worker AND lost
), free AS MATERIALIZED (
    SELECT task_id, lost = :worker AND cardinality(array_remove(alone, :worker)) = 0 AS cleared FROM suspects
    WHERE lost = :worker OR :worker = ANY(alone) ORDER BY task_id FOR UPDATE SKIP LOCKED
), counted AS (
    UPDATE suspects SET alone = array_remove(alone, :worker)
    WHERE task_id = ANY(ARRAY(SELECT task_id FROM free WHERE NOT cleared))
)
DELETE FROM suspects WHERE task_id = ANY(ARRAY(SELECT task_id FROM free WHERE cleared));

-- name: settle
-- A batch of outcomes. A claim whose lease has expired still wins with `succeeded` or `dead` while the task was not
-- claimed again: the attempt that was given back when its worker was lost did happen. A task that was released without
-- an error, before it ran, stays a suspect.
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
