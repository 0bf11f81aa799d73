-- Notifications that were requested with an id, and delivery reports of tasks.

-- name: begin_notification
-- The right to send. A repeat gets it only if the attempt before is known to have sent nothing, or if the caller counts
-- a later attempt: it then knows that the one before may have been sent, and has decided to send again. Another payload
-- is not a repeat.
INSERT INTO notifications (id, state, attempt, digest) VALUES (:id, 'begun', :attempt, :digest)
ON CONFLICT (id) DO UPDATE
SET state = 'begun', version = notifications.version + 1, attempt = GREATEST(notifications.attempt, :attempt),
    digest = :digest, updated_at = now()
WHERE COALESCE(notifications.digest, :digest) = :digest
  AND (notifications.state = 'failed'
       OR notifications.state IN ('begun', 'unknown') AND notifications.attempt < :attempt)
RETURNING version, progress, created_at;

-- name: get_notification
SELECT state, outcome, progress, COALESCE(digest, :digest) = :digest AS same FROM notifications WHERE id = :id;

-- name: end_notification
-- The outcome of the one that began at version :version.
UPDATE notifications
SET state = :state, outcome = :outcome, progress = COALESCE(:progress, progress), updated_at = now()
WHERE id = :id AND version = :version AND state = 'begun'
RETURNING id;

-- Delivery reports

-- name: record_reports
-- Of the report on the task and the new one, the one of higher weight is kept. Any report means that the message was
-- sent: an `uncertain` task has succeeded.
WITH input AS (
    SELECT * FROM unnest(
        :ids::uuid[], :replays::integer[], :statuses::text[], :codes::text[], :descriptions::text[],
        :request_ids::text[], :reported_at::text[]
    ) WITH ORDINALITY AS i (id, replay, status, code, description, request_id, reported_at, place)
), incoming AS (
    SELECT place, replay, status, request_id, COALESCE(reported_at, '') AS reported_at,
           json_strip_nulls(json_build_object(
               'status', status, 'at', (SELECT timeline_now()), 'code', code, 'desc', description,
               'requestId', request_id, 'reportedAt', reported_at, 'replay', NULLIF(replay, 0)))::text AS delivery
    FROM input
), locked AS (
    SELECT t.id, i.place, t.tenant, t.type, i.status,
           CASE WHEN t.state <> 'scheduled' THEN t.state
                WHEN EXISTS (SELECT FROM claims c WHERE c.task_id = t.id OFFSET 0) THEN 'running'
                WHEN EXISTS (SELECT FROM due d
                             WHERE d.task_id = t.id AND d.dead::integer = 0 AND (d.publish_at = never()) IS TRUE
                             OFFSET 0)
                THEN 'queued' ELSE t.state END AS before, i.request_id, i.delivery,
           delivery_rank(t.delivery, t.replays) < 0 AS first,
           (delivery_rank(i.delivery, t.replays), i.reported_at)
               > (delivery_rank(t.delivery, t.replays), COALESCE(t.delivery::json ->> 'reportedAt', '')) AS heavier
    FROM tasks t JOIN incoming i ON i.place = width_bucket(t.id, :ids::uuid[])
    WHERE t.id = ANY(:ids) AND t.id BETWEEN :least AND :greatest AND t.replays = i.replay
    ORDER BY t.id FOR UPDATE OF t
), reported AS (
    UPDATE tasks t
    SET delivery = l.delivery, updated_at = now(),
        state = CASE WHEN l.before = 'uncertain' THEN 'succeeded' ELSE t.state END,
        version = t.version + (l.before = 'uncertain')::integer,
        claim_version = CASE WHEN l.before = 'uncertain' THEN NULL ELSE t.claim_version END,
        error_class = CASE WHEN l.before = 'uncertain' THEN NULL ELSE t.error_class END,
        error_reason = CASE WHEN l.before = 'uncertain' THEN NULL ELSE t.error_reason END,
        result = CASE WHEN l.before = 'uncertain' AND t.result IS NULL
            THEN json_strip_nulls(json_build_object('requestId', l.request_id, 'status', 'accepted'))::text
            ELSE t.result END,
        timeline = timeline_add(
            t.timeline,
            (SELECT timeline_now())
            || CASE WHEN l.before = 'uncertain' THEN '|resolved-succeeded|succeeded|'
                    ELSE '|reported|' || l.before || '|' END
            || t.attempts || '|1|' || l.status)
    FROM locked l
    WHERE l.place = width_bucket(t.id, :ids::uuid[]) AND l.heavier
      AND t.id = ANY(ARRAY(SELECT id FROM locked)) AND t.id BETWEEN :least AND :greatest
    RETURNING t.id
), early AS (
    INSERT INTO early_reports (task_id)
    SELECT id FROM locked WHERE heavier AND before IN ('scheduled', 'queued', 'running') ORDER BY id
    ON CONFLICT (task_id) DO NOTHING
)
SELECT id, tenant, type, before, heavier, first FROM locked;

-- name: resolve_early
-- Tasks that were reported before their outcome was settled, and then held: up to :limit. Those that still run are
-- looked at again later, all others are finished.
WITH candidates AS MATERIALIZED (
    SELECT task_id FROM early_reports LIMIT :limit
), batch AS MATERIALIZED (
    SELECT array_agg(task_id ORDER BY task_id) AS ids FROM candidates
), locked AS (
    SELECT t.id, t.state FROM tasks t WHERE t.id = ANY((SELECT ids FROM batch)::uuid[]) ORDER BY t.id FOR UPDATE
), resolved AS (
    UPDATE tasks t
    SET state = 'succeeded', version = t.version + 1, claim_version = NULL, updated_at = now(), error_class = NULL,
        error_reason = NULL,
        timeline = timeline_add(
            t.timeline,
            (SELECT timeline_now()) || '|resolved-succeeded|succeeded|' || t.attempts || '|1|reported before')
    WHERE t.id = ANY(ARRAY(SELECT id FROM locked WHERE state = 'uncertain'))
      AND delivery_rank(t.delivery, t.replays) >= 0
    RETURNING t.id
), done AS (
    DELETE FROM early_reports e
    WHERE e.task_id = ANY((SELECT ids FROM batch)::uuid[])
      AND e.task_id NOT IN (SELECT id FROM locked WHERE state IN ('scheduled', 'queued', 'running'))
)
SELECT id FROM resolved;
