-- What a person, or a receipt, decides about one task. As everywhere: its row is locked first, then compared and set.

-- name: cancel
-- A waiting task will not run. Its record in Kafka, if there is one, meets a state that nobody claims.
WITH locked AS (
    SELECT id FROM tasks WHERE id = $1 AND tenant = $2 AND state IN ('scheduled', 'queued') FOR UPDATE
), cancelled AS (
    UPDATE tasks t
    SET state = 'cancelled', version = t.version + 1, claim_version = NULL, worker = NULL, updated_at = now(),
        timeline = timeline_add(t.timeline, (SELECT timeline_now()) || '|cancelled|cancelled|' || t.attempts || '|1|' || $3)
    FROM locked WHERE t.id = locked.id AND t.id = $1
    RETURNING t.id
), gone AS (
    DELETE FROM due d USING cancelled c WHERE d.task_id = c.id AND d.task_id = $1 AND NOT d.dead
)
SELECT id FROM cancelled;

-- name: resolve
-- An uncertain task has succeeded, is due again, or is dead and owed to the dead-letter topic. One that is to be sent
-- again has an attempt left, whatever its budget was, and no expiry that has passed: whoever says so wants it to run.
-- The claim that was lost may still report while its task waits to run again.
WITH locked AS (
    SELECT id FROM tasks
    WHERE id = $1 AND ($2::text IS NULL OR tenant = $2) AND state = 'uncertain' FOR UPDATE
), resolved AS (
    UPDATE tasks t
    SET state = $3::text, version = t.version + 1, worker = NULL, updated_at = now(),
        claim_version = CASE WHEN $3 = 'scheduled' THEN t.claim_version END,
        attempts = CASE WHEN $3 = 'scheduled' THEN LEAST(t.attempts, t.max_attempts - 1) ELSE t.attempts END,
        due_at = CASE WHEN $3 = 'scheduled' THEN now() ELSE t.due_at END,
        expires_at = CASE WHEN $3 = 'scheduled' AND t.expires_at <= now() THEN NULL ELSE t.expires_at END,
        error_class = CASE WHEN $3 <> 'succeeded' THEN t.error_class END,
        error_reason = CASE WHEN $3 = 'dead' THEN COALESCE($5, t.error_reason)
                            WHEN $3 = 'scheduled' THEN t.error_reason END,
        timeline = timeline_add(
            t.timeline,
            (SELECT timeline_now()) || '|' || $4::text || '|' || $3 || '|'
            || CASE WHEN $3 = 'scheduled' THEN LEAST(t.attempts, t.max_attempts - 1) ELSE t.attempts END || '|1|' || $6)
    FROM locked WHERE t.id = locked.id AND t.id = $1
    RETURNING t.id, t.type, t.state, t.version, t.expires_at
), waiting AS (
    INSERT INTO due (task_id, dead, type, version, publish_at, expires_at)
    SELECT id, state = 'dead', type, version, now(), expires_at FROM resolved WHERE state IN ('scheduled', 'dead')
    ON CONFLICT (task_id, dead) DO UPDATE
    SET version = EXCLUDED.version, publish_at = EXCLUDED.publish_at, expires_at = EXCLUDED.expires_at
)
SELECT id, type FROM resolved;
