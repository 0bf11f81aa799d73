-- A plan that was made while `due` was empty is kept, and may read the whole of a partial index there in place of the
-- primary key. `dead` as an integer implies no partial index, so that only the primary key is left.

CREATE OR REPLACE VIEW task_states AS
SELECT t.id, t.tenant, t.type,
       CASE WHEN c.task_id IS NOT NULL THEN 'running' WHEN d.task_id IS NOT NULL THEN 'queued'
            ELSE t.state END AS state,
       COALESCE(c.version, t.version) AS version, COALESCE(c.attempt, t.attempts) AS attempts, t.max_attempts, t.losses,
       t.replays, t.key, t.payload, t.metadata, t.traceparent, t.created_at,
       GREATEST(t.updated_at, c.claimed_at, d.published_at) AS updated_at, t.due_at, t.expires_at, t.result,
       t.error_class, t.error_reason, t.delivery,
       CASE WHEN c.task_id IS NULL AND d.task_id IS NULL THEN t.timeline ELSE timeline_add(t.timeline, ARRAY[
           timeline_entry(COALESCE(c.published_at, d.published_at), 'published', 'queued', t.attempts, ''),
           timeline_entry(c.claimed_at, 'claimed', 'running', c.attempt,
                          COALESCE((SELECT label FROM workers w WHERE w.id = c.worker), ''))
       ]) END AS timeline
FROM tasks t
LEFT JOIN LATERAL (
    SELECT * FROM claims
    WHERE task_id = CASE WHEN t.state IN ('scheduled', 'queued') THEN t.id END AND attempt IS NOT NULL OFFSET 0
) c ON true
LEFT JOIN LATERAL (
    SELECT * FROM due
    WHERE task_id = CASE WHEN t.state = 'scheduled' AND c.task_id IS NULL THEN t.id END AND dead::integer = 0
      AND (publish_at = never()) IS TRUE OFFSET 0
) d ON true;
