-- What the leader measures for all, from the narrow tables: `tasks` itself is never looked at.

-- name: measure_tasks
-- What is due comes from its index alone.
SELECT waits.type, each.state, each.tasks, each.oldest
FROM (
    SELECT type, count(*) FILTER (WHERE publish_at <= now())::integer AS due,
           count(*) FILTER (WHERE publish_at > now())::integer AS scheduled,
           extract(epoch FROM now() - min(publish_at))::float8 AS oldest
    FROM due WHERE NOT dead GROUP BY type
) AS waits
CROSS JOIN LATERAL (VALUES ('due', due, oldest), ('scheduled', scheduled, NULL)) AS each (state, tasks, oldest)
UNION ALL
SELECT type, 'running', count(*)::integer, NULL FROM claims GROUP BY type
UNION ALL
SELECT type, 'dead-due', count(*)::integer, NULL FROM due WHERE dead GROUP BY type;

-- name: measure_parked
SELECT type, state, count(*)::integer AS tasks FROM parked GROUP BY type, state;

-- name: measure_workers
-- A worker that has not beaten for a lease ($1, seconds) is no worker.
SELECT COALESCE(type, regexp_replace(handler, '^process-', '')) AS type, count(*)::integer AS workers
FROM workers WHERE NOT ended AND beat_at > now() - make_interval(secs => $1) GROUP BY 1;

-- name: measure_letters
SELECT error_class, count(*)::integer AS letters FROM dead_letters WHERE state = 'open' GROUP BY error_class;

-- name: measure_circuits
SELECT provider, open, COALESCE(error_class, '') AS error_class, extract(epoch FROM now() - opened_at)::float8 AS seconds
FROM circuits;

-- name: measure_types
SELECT type, provider FROM task_types;
