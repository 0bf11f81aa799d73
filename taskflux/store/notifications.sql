-- Notifications that were asked for with an id.

-- name: begin_notification
-- The right to send. A repeat has it only where the attempt before surely sent nothing, or where the caller counts a
-- later attempt: it knows then that the one before may have been sent, and has decided to send again.
INSERT INTO notifications (id, state, attempt) VALUES ($1, 'begun', $2)
ON CONFLICT (id) DO UPDATE
SET state = 'begun', version = notifications.version + 1, attempt = GREATEST(notifications.attempt, $2),
    updated_at = now()
WHERE notifications.state = 'failed'
   OR notifications.state IN ('begun', 'unknown') AND notifications.attempt < $2
RETURNING version, progress, created_at;

-- name: get_notification
SELECT state, outcome, progress FROM notifications WHERE id = $1;

-- name: end_notification
-- What became of the one that began at version $2.
UPDATE notifications
SET state = $3, outcome = $4, progress = COALESCE($5, progress), updated_at = now()
WHERE id = $1 AND version = $2 AND state = 'begun'
RETURNING id;
