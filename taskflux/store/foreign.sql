-- Tasks that other producers have written to Kafka.

-- name: adopt
-- Rows for records that were never seen before. They are due after $8 seconds: whoever adopts them claims or publishes
-- them first.
WITH input AS (
    SELECT * FROM unnest(
        $1::text[], $2::bytea[], $3::uuid[], $4::text[], $5::text[], $6::integer[], $7::text[]
    ) AS i (identity, digest, id, type, payload, max_attempts, traceparent)
), fresh AS (
    INSERT INTO foreign_tasks (identity, task_id, digest)
    SELECT identity, id, digest FROM input ORDER BY identity
    ON CONFLICT (identity) DO NOTHING
    RETURNING task_id
), accepted AS (
    INSERT INTO tasks (id, type, payload, max_attempts, traceparent, timeline)
    SELECT id, type, payload, max_attempts, traceparent,
           ARRAY[(SELECT timeline_now()) || '|accepted|scheduled|0|1|from another producer']
    FROM input WHERE id IN (SELECT task_id FROM fresh) ORDER BY id
    RETURNING id, type
)
INSERT INTO due (task_id, type, version, publish_at)
SELECT id, type, 1, now() + make_interval(secs => $8) FROM accepted
RETURNING task_id;

-- name: find_foreign
-- Which tasks these have become before.
SELECT identity, task_id, digest FROM foreign_tasks WHERE identity = ANY($1::text[]);
