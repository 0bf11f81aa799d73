-- Leases, claims and settlements.

-- name: begin_lease
-- A worker begins, under a new identity. Its image is noted where another one began last.
WITH noted AS (
    INSERT INTO handler_images (type, image)
    SELECT :type, :image::text
    WHERE :image <> COALESCE((SELECT image FROM handler_images WHERE type = :type ORDER BY since DESC LIMIT 1), '')
    ON CONFLICT DO NOTHING
)
INSERT INTO workers (id, handler, label, origin, pid, in_flight, type)
VALUES (:id, :handler, :label, :origin, :pid, :in_flight, :type);

-- name: beat
-- One row renews all claims of a worker. Only the number is compared: beat_at is for people, and for relays of the
-- release before. No row is returned once the lease was ended.
UPDATE workers SET beat = beat + 1, beat_at = now(), in_flight = :in_flight WHERE id = :id AND NOT ended RETURNING id;

-- name: end_lease
-- A worker stops: what it could not settle is freed at once. A claim that still runs is waited for.
WITH locked AS (
    SELECT id FROM workers WHERE id = :id FOR UPDATE
)
UPDATE workers SET ended = true WHERE id = ANY(ARRAY(SELECT id FROM locked));

-- name: claim
-- A batch of records becomes running tasks of one worker; the payload comes with the claim, unless it is large. The
-- wide row is locked and stays as it is, except where a former worker may still report late (`claim_version`), or the
-- release before has confirmed the record (`queued`). Suspects are claimed as the members of a group (:suspects) or not
-- at all. No row is returned once the worker's lease was ended, one of NULLs where nothing could be claimed. The lock
-- lets the worker beat meanwhile, and keeps its lease from being ended (`end_silent`). Where all records have one
-- version, :version is that, and :versions is empty.
WITH lease AS MATERIALIZED (
    SELECT id FROM workers WHERE id = :worker AND NOT ended FOR KEY SHARE
), suspected AS MATERIALIZED (
    SELECT array_agg(task_id) AS ids FROM suspects WHERE task_id = ANY(:ids)
), locked AS MATERIALIZED (
    SELECT t.id, t.state, t.version, t.claim_version, t.attempts, t.max_attempts, t.handbacks, t.replays, t.tenant,
           t.key,
           CASE WHEN octet_length(t.payload) <= :carried THEN t.payload END AS payload,
           octet_length(t.payload) AS size, t.metadata, t.result, t.traceparent, t.attempt_span,
           extract(epoch FROM t.created_at)::float8 AS created,
           COALESCE(t.expires_at <= now(), false) AS expired,
           GREATEST(0, extract(epoch FROM now() - t.due_at))::float8 AS waited
    FROM tasks t
    WHERE EXISTS (SELECT FROM lease) AND t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest
      AND t.version = COALESCE(:version::integer, (:versions::integer[])[width_bucket(t.id, :ids::uuid[])])
      AND t.state IN ('scheduled', 'queued') AND t.type = :type
      AND (:suspects OR array_position((SELECT ids FROM suspected), t.id) IS NULL)
    ORDER BY t.id FOR NO KEY UPDATE
), published AS MATERIALIZED (
    SELECT array_agg(d.task_id ORDER BY d.task_id) AS ids, array_agg(d.published_at ORDER BY d.task_id) AS moments
    FROM due d
    WHERE d.task_id = ANY(:ids) AND d.dead::integer = 0 AND (d.publish_at = never()) IS TRUE
      AND d.version = COALESCE(:version::integer, (:versions::integer[])[width_bucket(d.task_id, :ids::uuid[])])
), claimed AS (
    INSERT INTO claims (task_id, worker, type, version, attempt, claimed_at, published_at)
    SELECT l.id, :worker, :type, l.version + 1, l.attempts + 1, now(),
           CASE WHEN l.state = 'scheduled' AND p.ids[width_bucket(l.id, p.ids)] = l.id
                THEN p.moments[width_bucket(l.id, p.ids)] END
    FROM locked l CROSS JOIN published p ORDER BY l.id
    ON CONFLICT (task_id) DO NOTHING
    RETURNING task_id
), taken AS (
    DELETE FROM due d WHERE d.task_id = ANY(ARRAY(SELECT task_id FROM claimed)) AND d.dead::integer = 0
), plain AS (
    UPDATE tasks t SET state = 'scheduled', claim_version = NULL
    WHERE t.id = ANY(ARRAY(
            SELECT l.id FROM locked l
            WHERE (l.state <> 'scheduled' OR l.claim_version IS NOT NULL)
              AND (l.id IN (SELECT task_id FROM claimed)) IS TRUE))
      AND t.id BETWEEN :least AND :greatest
)
SELECT l.id, l.version + 1 AS version, l.attempts + 1 AS attempt, l.max_attempts, l.handbacks AS releases, l.replays,
       l.tenant, l.key, l.payload, l.metadata, l.result AS progress, l.traceparent, l.attempt_span,
       l.created, l.expired, l.waited, l.size
FROM lease LEFT JOIN locked l ON (l.id IN (SELECT task_id FROM claimed)) IS TRUE;

-- name: reclaim
-- Tasks that a claim of ours took although its answer was lost, unless our lease was ended since.
SELECT t.id, c.version, c.attempt, t.max_attempts, t.handbacks AS releases, t.replays, t.tenant,
       t.key, CASE WHEN octet_length(t.payload) <= :carried THEN t.payload END AS payload,
       t.metadata, t.result AS progress, t.traceparent, t.attempt_span,
       extract(epoch FROM t.created_at)::float8 AS created,
       COALESCE(t.expires_at <= now(), false) AS expired,
       GREATEST(0, extract(epoch FROM now() - t.due_at))::float8 AS waited,
       octet_length(t.payload) AS size
FROM claims c CROSS JOIN LATERAL (SELECT * FROM tasks WHERE id = c.task_id OFFSET 0) t
WHERE c.task_id = ANY(:ids) AND c.worker = :worker AND c.attempt IS NOT NULL
  AND c.version = (:versions::integer[])[width_bucket(c.task_id, :ids::uuid[])] + 1
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
    FROM asked a CROSS JOIN LATERAL (SELECT version, state FROM task_states WHERE id = a.task_id OFFSET 0) t
    WHERE t.version = (:versions::integer[])[width_bucket(a.task_id, :ids::uuid[])]
      AND t.state IN ('scheduled', 'queued')
)
SELECT s.group_id, t.id, t.version
FROM suspects s CROSS JOIN LATERAL (SELECT id, version, state FROM task_states WHERE id = s.task_id OFFSET 0) t
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
-- A batch of outcomes: the one update of each wide row. Its fence is the row of its claim, under one of the identities
-- that this process has had (:workers), which it deletes. Once the lease was ended, the wide row says what the claim has
-- said (`end_claims`), and the outcome still counts; so it does later, with `succeeded` or `dead`, while the task was
-- not claimed again (`claim_version`): the attempt that was given back when its worker was lost did happen. A task that
-- was released without an error, before it ran, stays a suspect. An array that would hold nothing but zeros, empty texts
-- or NULLs comes empty: unnest fills it with NULLs. So do versions, states and events where all are the same (:version,
-- :state, :event).
--
-- One row is returned: the ages of the tasks that were written, in the order of their places in :ids; these places, if
-- some were not written; and the places of those that were written late.
WITH locked AS MATERIALIZED (
    SELECT t.id, t.version FROM tasks t
    WHERE t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest
      AND (t.state = 'scheduled'
              AND t.version = COALESCE(:version::integer, (:versions::integer[])[width_bucket(t.id, :ids::uuid[])]) - 1
           OR t.claim_version = COALESCE(:version::integer, (:versions::integer[])[width_bucket(t.id, :ids::uuid[])])
              AND (t.state = 'running' AND t.version = t.claim_version
                   OR t.state IN ('scheduled', 'queued', 'uncertain')
                      AND COALESCE(:state, (:states::text[])[width_bucket(t.id, :ids::uuid[])])
                          IN ('succeeded', 'dead')))
    ORDER BY t.id FOR NO KEY UPDATE
), released AS (
    DELETE FROM claims c
    WHERE c.task_id = ANY(ARRAY(SELECT id FROM locked)) AND (c.worker = ANY(:workers) OR c.attempt IS NULL)
      AND c.version = COALESCE(:version::integer, (:versions::integer[])[width_bucket(c.task_id, :ids::uuid[])])
    RETURNING c.task_id, c.attempt, c.published_at, c.claimed_at
), freed AS MATERIALIZED (
    SELECT array_agg(task_id ORDER BY task_id) AS ids, array_agg(attempt ORDER BY task_id) AS attempts,
           array_agg(published_at ORDER BY task_id) AS published, array_agg(claimed_at ORDER BY task_id) AS claimed
    FROM released WHERE attempt IS NOT NULL
), outcome AS MATERIALIZED (
    SELECT COALESCE(:version::integer, i.version) AS version, COALESCE(:state, i.state) AS state,
           COALESCE(:event, i.event) AS event, COALESCE(i.delay, 0) AS delay, COALESCE(i.given_back, 0) AS given_back,
           COALESCE(i.handbacks, 0) AS handbacks, i.result, i.error_class, i.reason, COALESCE(i.note, '') AS note,
           i.span, i.cause, i.place, f.attempts[at] AS attempt, f.published[at] AS published_at, f.claimed[at] AS claimed_at
    FROM freed f CROSS JOIN ROWS FROM (
        unnest(:versions::integer[], :states::text[], :events::text[], :delays::float8[], :given_back::integer[],
               :releases::integer[], :results::text[], :error_classes::text[], :reasons::text[], :notes::text[],
               :spans::text[], :causes::text[]),
        generate_series(1, cardinality(:ids::uuid[]))  -- which the planner takes for many: it joins by a hash then
    ) AS i (
        version, state, event, delay, given_back, handbacks, result, error_class, reason, note, span, cause, place
    ) CROSS JOIN LATERAL (
        SELECT CASE WHEN cardinality(f.ids) = cardinality(:ids::uuid[]) THEN i.place
                    WHEN f.ids[width_bucket(id, f.ids)] = id THEN width_bucket(id, f.ids) END AS at
        FROM (SELECT (:ids::uuid[])[i.place] AS id) AS named
    ) AS found
), settled AS (
    UPDATE tasks t
    SET state = o.state,
        version = CASE WHEN t.state <> 'running' AND t.version >= o.version THEN t.version + 1 ELSE o.version END,
        claim_version = NULL, worker = NULL,
        attempts = COALESCE(o.attempt, t.attempts + (t.state IN ('scheduled', 'queued'))::integer) - o.given_back,
        handbacks = o.handbacks, updated_at = now(),
        due_at = CASE WHEN o.state = 'scheduled' THEN now() + make_interval(secs => o.delay) ELSE t.due_at END,
        result = COALESCE(o.result, t.result), error_class = o.error_class, error_reason = o.reason,
        attempt_span = COALESCE(o.span, t.attempt_span),
        timeline = timeline_add(t.timeline, ARRAY[
            timeline_entry(o.published_at, 'published', 'queued', o.attempt - 1, ''),
            timeline_entry(o.claimed_at, 'claimed', 'running', o.attempt, :label),
            (SELECT timeline_now()) || '|'
            || CASE WHEN t.state = 'running' OR t.version < o.version THEN o.event
                    WHEN o.state = 'succeeded' THEN 'late-success' ELSE 'late-death' END
            || '|' || o.state || '|'
            || (COALESCE(o.attempt, t.attempts + (t.state IN ('scheduled', 'queued'))::integer) - o.given_back)
            || '|1|' || o.note])
    FROM outcome o
    WHERE o.place = width_bucket(t.id, :ids::uuid[])
      AND t.id = ANY(ARRAY(
          SELECT id FROM locked
          WHERE version >= COALESCE(:version::integer, (:versions::integer[])[width_bucket(id, :ids::uuid[])])
             OR id IN (SELECT task_id FROM released WHERE attempt IS NOT NULL)))
      AND t.id BETWEEN :least AND :greatest
    RETURNING t.id, t.tenant, t.type, t.state, t.version, t.due_at, t.expires_at, o.event, o.place, o.cause, t.error_class,
              t.version <> o.version AS late,
              GREATEST(0, extract(epoch FROM now() - t.created_at))::float8 AS age
), cleared AS (
    DELETE FROM suspects s WHERE s.task_id = ANY(ARRAY(
        SELECT id FROM settled WHERE event <> 'handed-back' OR error_class IS NOT NULL
    ))
), caused AS (
    -- Of those that are held or dead: the trigger that maintains this table leaves their cause.
    INSERT INTO parked (task_id, tenant, type, state, cause)
    SELECT id, tenant, type, state, cause FROM settled WHERE cause IS NOT NULL ORDER BY id
    ON CONFLICT (task_id) DO UPDATE SET state = EXCLUDED.state, cause = EXCLUDED.cause
), waiting AS (
    INSERT INTO due (task_id, dead, type, version, publish_at, expires_at)
    SELECT id, state = 'dead', type, version, CASE WHEN state = 'dead' THEN now() ELSE due_at END, expires_at
    FROM settled WHERE state IN ('scheduled', 'dead') ORDER BY id
    ON CONFLICT (task_id, dead) DO UPDATE
    SET version = EXCLUDED.version, publish_at = EXCLUDED.publish_at, expires_at = EXCLUDED.expires_at
)
SELECT array_agg(age ORDER BY place) AS ages,
       CASE WHEN count(*) < cardinality(:ids::uuid[]) THEN array_agg(place ORDER BY place) END AS places,
       array_agg(place) FILTER (WHERE late) AS late,
       CASE WHEN bool_or(late) THEN withdraw_rows(array_agg(id) FILTER (WHERE late)) END AS withdrawn
FROM settled;
