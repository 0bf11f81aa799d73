-- Deleting what is past its age. :succeeded, :dead and :cancelled are the times before which a task of that state must
-- have ended to be deleted; NULL keeps them all. A dead task stays until its dead letter is published.

-- name: store_now
SELECT now();

-- name: task_partitions
-- Oldest first, with their ranges: from, below.
SELECT name, bounds[1]::uuid AS "from", bounds[2]::uuid AS below
FROM (
    SELECT c.relname::text AS name,
           regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''([^'']+)''\) TO \(''([^'']+)''\)') AS bounds
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'tasks'::regclass
) AS partitions
WHERE bounds IS NOT NULL ORDER BY 2;

-- name: look_for_old
-- The next :limit tasks behind id :after, below :below: how many of each state may be deleted, and which ones stay.
-- `last` is where to look next, NULL at the end.
WITH page AS MATERIALIZED (
    SELECT id, state, updated_at FROM tasks WHERE id > :after AND id < :below ORDER BY id LIMIT :limit
), judged AS MATERIALIZED (
    SELECT id, state, past_age(state, updated_at, :succeeded, :dead, :cancelled)
           AND NOT (state = 'dead' AND EXISTS (SELECT FROM due d WHERE d.task_id = id AND d.dead)) AS goes
    FROM page
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last,
       count(*) FILTER (WHERE goes AND state = 'succeeded')::integer AS succeeded,
       count(*) FILTER (WHERE goes AND state = 'dead')::integer AS dead,
       count(*) FILTER (WHERE goes AND state = 'cancelled')::integer AS cancelled,
       COALESCE(array_agg(id) FILTER (WHERE NOT goes), '{}') AS staying
FROM judged;

-- name: delete_old
-- The same, and delete what may be deleted.
WITH page AS MATERIALIZED (
    SELECT id, state, updated_at FROM tasks WHERE id > :after AND id < :below ORDER BY id LIMIT :limit
), batch AS MATERIALIZED (
    SELECT array_agg(id ORDER BY id) AS ids FROM page
    WHERE past_age(state, updated_at, :succeeded, :dead, :cancelled)
      AND NOT (state = 'dead' AND EXISTS (SELECT FROM due d WHERE d.task_id = id AND d.dead))
), locked AS MATERIALIZED (
    SELECT id FROM tasks
    WHERE id = ANY((SELECT ids FROM batch)::uuid[]) AND id > :after AND id < :below
      AND past_age(state, updated_at, :succeeded, :dead, :cancelled)
    ORDER BY id FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM tasks
    WHERE id = ANY(ARRAY(SELECT id FROM locked)) AND id > :after AND id < :below
    RETURNING id, state
), unparked AS (
    DELETE FROM parked WHERE task_id = ANY(ARRAY(SELECT id FROM gone))
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last,
       count(*) FILTER (WHERE state = 'succeeded')::integer AS succeeded,
       count(*) FILTER (WHERE state = 'dead')::integer AS dead,
       count(*) FILTER (WHERE state = 'cancelled')::integer AS cancelled
FROM gone;

-- name: guard_partition
SELECT guard_task_partition(:partition);

-- name: unguard_partition
SELECT unguard_task_partition(:partition);

-- name: drop_partition
SELECT drop_task_partition(:partition, :guard, :staying);

-- name: forget_parked
-- Rows of tasks that were dropped with their partition, among the next :limit behind id :after, below :below. A deleted
-- task never comes back, so nothing has to be locked.
WITH page AS MATERIALIZED (
    SELECT task_id FROM parked WHERE task_id > :after AND task_id < :below ORDER BY task_id LIMIT :limit
), gone AS (
    DELETE FROM parked WHERE task_id = ANY(ARRAY(
        SELECT p.task_id FROM page p WHERE NOT EXISTS (SELECT FROM tasks t WHERE t.id = p.task_id)
    ))
)
SELECT task_id AS last FROM page ORDER BY task_id DESC LIMIT 1;

-- name: count_old_letters
SELECT count(*)::integer FROM dead_letters WHERE created_at < :before;

-- name: delete_old_letters
-- Up to :limit of them; the records of their replays are deleted with them.
DELETE FROM dead_letters WHERE id = ANY(ARRAY(
    SELECT id FROM dead_letters WHERE created_at < :before ORDER BY created_at, id LIMIT :limit FOR UPDATE SKIP LOCKED
)) RETURNING id;

-- name: delete_old_replays
DELETE FROM bulk_replays WHERE id = ANY(ARRAY(
    SELECT id FROM bulk_replays WHERE updated_at < :before AND status IN ('finished', 'stopped') LIMIT :limit
)) RETURNING id;

-- name: delete_old_foreign
-- The tasks of other producers' records, once no topic holds the record any more and the task may be deleted.
DELETE FROM foreign_tasks WHERE identity = ANY(ARRAY(
    SELECT identity FROM foreign_tasks WHERE created_at < :before ORDER BY created_at LIMIT :limit
)) RETURNING identity;

-- name: delete_old_notifications
DELETE FROM notifications WHERE id = ANY(ARRAY(
    SELECT id FROM notifications WHERE created_at < :before AND updated_at < :before ORDER BY created_at LIMIT :limit
)) RETURNING id;
