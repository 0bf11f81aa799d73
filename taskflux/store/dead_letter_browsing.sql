-- Looking at dead letters. A filter is six parameters, each NULL where it does not matter: type, error class, created
-- from, created before, origin topic, state.

-- name: page_of_dead_letters
-- Newest first, behind the place ($8, $9) of the letter that ended the page before; at most $10.
WITH page AS MATERIALIZED (
    SELECT id, task_id, type, error_class, reason, attempts, origin, created_at, state, discarded_at, discard_reason
    FROM dead_letters
    WHERE tenant = $1
      AND ($2::text IS NULL OR type = $2)
      AND ($3::text IS NULL OR error_class = $3)
      AND ($4::timestamptz IS NULL OR created_at >= $4)
      AND ($5::timestamptz IS NULL OR created_at < $5)
      AND ($6::text IS NULL OR origin_topic(origin) = $6)
      AND ($7::text IS NULL OR state = $7)
      AND (created_at, id)
          < (COALESCE($8::timestamptz, 'infinity'), COALESCE($9::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
    ORDER BY created_at DESC, id DESC LIMIT $10
)
SELECT page.*, r.replays
FROM page
CROSS JOIN LATERAL (
    SELECT array_agg(ARRAY[to_char(r.replayed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), r.task_id::text,
                           replay_outcome(t.state, t.replays, r.replay), r.bulk_id::text] ORDER BY r.replayed_at) AS replays
    FROM dead_letter_replays r LEFT JOIN tasks t ON t.id = r.task_id
    WHERE r.letter_id = page.id
) AS r
ORDER BY page.created_at DESC, page.id DESC;

-- name: groups_of_dead_letters
-- How many there are by type and error class, the largest groups first; at most $8.
SELECT type, error_class, count(*)::integer AS letters, min(created_at) AS oldest, max(created_at) AS newest
FROM dead_letters
WHERE tenant = $1
  AND ($2::text IS NULL OR type = $2)
  AND ($3::text IS NULL OR error_class = $3)
  AND ($4::timestamptz IS NULL OR created_at >= $4)
  AND ($5::timestamptz IS NULL OR created_at < $5)
  AND ($6::text IS NULL OR origin_topic(origin) = $6)
  AND ($7::text IS NULL OR state = $7)
GROUP BY type, error_class
ORDER BY letters DESC, type, error_class LIMIT $8;

-- name: count_dead_letters
SELECT count(*)::integer AS letters
FROM dead_letters
WHERE tenant = $1
  AND ($2::text IS NULL OR type = $2)
  AND ($3::text IS NULL OR error_class = $3)
  AND ($4::timestamptz IS NULL OR created_at >= $4)
  AND ($5::timestamptz IS NULL OR created_at < $5)
  AND ($6::text IS NULL OR origin_topic(origin) = $6)
  AND ($7::text IS NULL OR state = $7);

-- name: get_dead_letter
-- Everything about one. `task_state` is NULL where its task is gone.
SELECT d.id, d.tenant, d.task_id, d.task_version, d.type, d.error_class, d.reason, d.attempts, d.payload, d.traceparent,
       d.origin, d.record_key, d.record_value, d.record_headers, d.created_at, d.state, d.discarded_at, d.discard_reason,
       t.state AS task_state, t.timeline, r.replays
FROM dead_letters d LEFT JOIN tasks t ON t.id = d.task_id
CROSS JOIN LATERAL (
    SELECT array_agg(ARRAY[to_char(r.replayed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), r.task_id::text,
                           replay_outcome(n.state, n.replays, r.replay), r.bulk_id::text] ORDER BY r.replayed_at) AS replays
    FROM dead_letter_replays r LEFT JOIN tasks n ON n.id = r.task_id
    WHERE r.letter_id = d.id
) AS r
WHERE d.id = $1 AND d.tenant = $2;

-- name: discard_dead_letter
UPDATE dead_letters SET state = 'discarded', discarded_at = now(), discard_reason = $3
WHERE id = $1 AND tenant = $2 AND state = 'open';
