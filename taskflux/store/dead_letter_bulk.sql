-- Bulk replays: asked for once, carried on batch by batch by whoever leads.

-- name: start_bulk_replay
-- $2: tenant; $3 to $7: the filter as the statements of dead_letter_browsing.sql take it; $8: as JSON.
WITH found AS (
    SELECT count(*)::integer AS letters
    FROM dead_letters
    WHERE tenant = $2 AND state = 'open'
      AND ($3::text IS NULL OR type = $3)
      AND ($4::text IS NULL OR error_class = $4)
      AND ($5::timestamptz IS NULL OR created_at >= $5)
      AND ($6::timestamptz IS NULL OR created_at < $6)
      AND ($7::text IS NULL OR origin_topic(origin) = $7)
)
INSERT INTO bulk_replays (id, tenant, filter, rate, status, matched)
SELECT $1, $2, $8, $9, CASE WHEN letters = 0 THEN 'finished' ELSE 'running' END, letters FROM found
RETURNING id, matched, status;

-- name: get_bulk_replay
SELECT id, filter, rate, status, matched, replayed, skipped, created_at, updated_at
FROM bulk_replays WHERE id = $1 AND tenant = $2;

-- name: bulk_replay_outcomes
SELECT replay_outcome(t.state, t.replays, r.replay) AS outcome, count(*)::integer AS letters
FROM dead_letter_replays r LEFT JOIN tasks t ON t.id = r.task_id
WHERE r.bulk_id = $1 GROUP BY 1;

-- name: stop_bulk_replay
-- What it has replayed stays replayed; every other letter stays open.
UPDATE bulk_replays SET status = 'stopped', updated_at = now() WHERE id = $1 AND tenant = $2 AND status = 'running';

-- name: running_bulk_replays
-- `allowance` is what its rate allows now: what was not used for longer than two seconds is lost.
SELECT id, tenant, filter, batches, cursor_at, cursor_id, created_at,
       floor(LEAST(extract(epoch FROM now() - paced_at)::float8, GREATEST(2, 1 / rate)) * rate + 1e-6)::integer AS allowance
FROM bulk_replays WHERE status = 'running' ORDER BY created_at LIMIT $1;

-- name: next_of_bulk_replay
-- The next $10 letters behind the cursor ($8, $9), oldest first, of those that were there when it was asked for ($7).
SELECT id, created_at FROM dead_letters
WHERE tenant = $1 AND state = 'open'
  AND ($2::text IS NULL OR type = $2)
  AND ($3::text IS NULL OR error_class = $3)
  AND ($4::timestamptz IS NULL OR created_at >= $4)
  AND ($5::timestamptz IS NULL OR created_at < $5)
  AND ($6::text IS NULL OR origin_topic(origin) = $6)
  AND created_at <= $7 AND (created_at, id)
      > (COALESCE($8::timestamptz, '-infinity'), COALESCE($9::uuid, '00000000-0000-0000-0000-000000000000'))
ORDER BY created_at, id LIMIT $10;
