-- Lists of tasks, newest first, which is the order of their ids. Each call looks at so many rows at most, whatever the
-- filters: `ended` is the id that it has come to, where it has not come to the end.
--
-- Parameters of all of them: $1 tenant · $2, $3 ids, below and from · $4 rows to look at · $5 tasks to return · and each
-- NULL where it does not matter: $6 state, $7 type, $8, $9 created from and before · $10, $11 what must stand in the
-- metadata, one of each pair.

-- name: list_recent
-- All tasks, by the primary key.
WITH found AS MATERIALIZED (
    SELECT * FROM (
        SELECT id, tenant, type, state, version, attempts, max_attempts, replays, key, metadata, traceparent, created_at,
               updated_at, due_at, expires_at, result, error_class, error_reason, delivery
        FROM tasks WHERE id < $2 AND id >= $3 ORDER BY id DESC LIMIT $4
    ) AS looked_at
    WHERE tenant = $1
      AND ($6::text IS NULL OR state = $6)
      AND ($7::text IS NULL OR type = $7)
      AND ($8::timestamptz IS NULL OR created_at >= $8)
      AND ($9::timestamptz IS NULL OR created_at < $9)
      AND (cardinality($10::text[]) = 0 OR metadata IS NOT NULL AND NOT EXISTS (
          SELECT FROM unnest($10::text[], $11::text[]) AS n (one, other)
          WHERE strpos(metadata, one) = 0 AND strpos(metadata, other) = 0
      ))
    ORDER BY id DESC LIMIT $5
)
SELECT e.id AS ended, f.*
FROM (
    -- Asked for only where the page is short: counting the rows again costs half as much as looking at them.
    SELECT CASE WHEN (SELECT count(*) FROM found) < $5 THEN (
        SELECT id FROM tasks WHERE id < $2 AND id >= $3 ORDER BY id DESC OFFSET $4 - 1 LIMIT 1
    ) END AS id
) AS e LEFT JOIN found f ON true
ORDER BY f.id DESC;

-- name: list_by_key
-- Those of one key ($12), by the index on it.
WITH found AS MATERIALIZED (
    SELECT * FROM (
        SELECT id, tenant, type, state, version, attempts, max_attempts, replays, key, metadata, traceparent, created_at,
               updated_at, due_at, expires_at, result, error_class, error_reason, delivery
        FROM tasks WHERE tenant = $1 AND key = $12 AND id < $2 AND id >= $3 ORDER BY id DESC LIMIT $4
    ) AS looked_at
    WHERE ($6::text IS NULL OR state = $6)
      AND ($7::text IS NULL OR type = $7)
      AND ($8::timestamptz IS NULL OR created_at >= $8)
      AND ($9::timestamptz IS NULL OR created_at < $9)
      AND (cardinality($10::text[]) = 0 OR metadata IS NOT NULL AND NOT EXISTS (
          SELECT FROM unnest($10::text[], $11::text[]) AS n (one, other)
          WHERE strpos(metadata, one) = 0 AND strpos(metadata, other) = 0
      ))
    ORDER BY id DESC LIMIT $5
)
SELECT e.id AS ended, f.*
FROM (
    SELECT CASE WHEN (SELECT count(*) FROM found) < $5 THEN (
        SELECT id FROM tasks WHERE tenant = $1 AND key = $12 AND id < $2 AND id >= $3 ORDER BY id DESC OFFSET $4 - 1 LIMIT 1
    ) END AS id
) AS e LEFT JOIN found f ON true
ORDER BY f.id DESC;

-- name: list_narrow
-- Those of a state that a narrow table knows: $4 of its rows are looked at, and the tasks of $12 at most.
WITH looked_at AS MATERIALIZED (
    (SELECT task_id AS id, type FROM due
     WHERE $6::text = 'scheduled' AND NOT dead AND task_id < $2 AND task_id >= $3 ORDER BY task_id DESC LIMIT $4)
    UNION ALL
    (SELECT task_id, type FROM claims
     WHERE $6::text = 'running' AND task_id < $2 AND task_id >= $3 ORDER BY task_id DESC LIMIT $4)
    UNION ALL
    (SELECT task_id, type FROM parked
     WHERE tenant = $1 AND state = $6::text AND task_id < $2 AND task_id >= $3 ORDER BY task_id DESC LIMIT $4)
), candidates AS MATERIALIZED (
    SELECT id FROM looked_at WHERE $7::text IS NULL OR type = $7 ORDER BY id DESC LIMIT $12
), batch AS MATERIALIZED (
    SELECT array_agg(id ORDER BY id) AS ids FROM candidates
), found AS MATERIALIZED (
    SELECT id, tenant, type, state, version, attempts, max_attempts, replays, key, metadata, traceparent, created_at,
           updated_at, due_at, expires_at, result, error_class, error_reason, delivery
    FROM tasks
    WHERE id = ANY((SELECT ids FROM batch)::uuid[])
      AND id BETWEEN (SELECT ids[1] FROM batch) AND (SELECT ids[cardinality(ids)] FROM batch)
      AND tenant = $1 AND state = $6
      AND ($8::timestamptz IS NULL OR created_at >= $8)
      AND ($9::timestamptz IS NULL OR created_at < $9)
      AND (cardinality($10::text[]) = 0 OR metadata IS NOT NULL AND NOT EXISTS (
          SELECT FROM unnest($10::text[], $11::text[]) AS n (one, other)
          WHERE strpos(metadata, one) = 0 AND strpos(metadata, other) = 0
      ))
    ORDER BY id DESC LIMIT $5
)
SELECT e.id AS ended, f.*
FROM (
    SELECT CASE
        WHEN (SELECT count(*) FROM found) = $5 THEN NULL
        WHEN (SELECT count(*) FROM candidates) = $12 THEN (SELECT ids[1] FROM batch)
        WHEN (SELECT count(*) FROM looked_at) = $4 THEN (SELECT id FROM looked_at ORDER BY id LIMIT 1)
    END AS id
) AS e LEFT JOIN found f ON true
ORDER BY f.id DESC;
