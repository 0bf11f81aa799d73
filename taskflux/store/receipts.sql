-- Delivery reports.

-- name: record_reports
-- The heavier of what stands on the task and what is reported now. Any report says that the message was sent: an
-- `uncertain` task has succeeded.
WITH input AS (
    SELECT * FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
        WITH ORDINALITY AS i (id, replay, status, code, description, request_id, reported_at, place)
), told AS (
    SELECT place, replay, status, request_id, COALESCE(reported_at, '') AS reported_at, json_strip_nulls(json_build_object(
        'status', status, 'at', (SELECT timeline_now()), 'code', code, 'desc', description, 'requestId', request_id,
        'reportedAt', reported_at, 'replay', NULLIF(replay, 0)))::text AS delivery
    FROM input
), locked AS (
    SELECT t.id, i.place, t.tenant, t.type, t.state AS before, i.status, i.request_id, i.delivery,
           delivery_rank(t.delivery, t.replays) < 0 AS first,
           (delivery_rank(i.delivery, t.replays), i.reported_at)
               > (delivery_rank(t.delivery, t.replays), COALESCE(t.delivery::json ->> 'reportedAt', '')) AS heavier
    FROM tasks t JOIN told i ON i.place = width_bucket(t.id, $1::uuid[])
    WHERE t.id = ANY($1) AND t.id BETWEEN $8 AND $9 AND t.replays = i.replay
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
            || CASE WHEN l.before = 'uncertain' THEN '|resolved-succeeded|succeeded|' ELSE '|reported|' || l.before || '|' END
            || t.attempts || '|1|' || l.status)
    FROM locked l
    WHERE l.place = width_bucket(t.id, $1::uuid[]) AND l.heavier
      AND t.id = ANY(ARRAY(SELECT id FROM locked)) AND t.id BETWEEN $8 AND $9
    RETURNING t.id
), early AS (
    INSERT INTO early_reports (task_id)
    SELECT id FROM locked WHERE heavier AND before IN ('scheduled', 'queued', 'running') ORDER BY id
    ON CONFLICT (task_id) DO NOTHING
)
SELECT id, tenant, type, before, heavier, first FROM locked;

-- name: resolve_early
-- Tasks that were reported before their outcome was settled, and then held: up to $1. Those that still run are looked
-- at again, all others are done with.
WITH candidates AS MATERIALIZED (
    SELECT task_id FROM early_reports LIMIT $1
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
