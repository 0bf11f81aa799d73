-- Notifications that were requested with an id.

-- name: begin_notification
-- The right to send. A repeat gets it only if the attempt before is known to have sent nothing, or if the caller counts
-- a later attempt: it then knows that the one before may have been sent, and has decided to send again. Another payload
-- is not a repeat.
INSERT INTO notifications (id, state, attempt, digest) VALUES (:id, 'begun', :attempt, :digest)
ON CONFLICT (id) DO UPDATE
SET state = 'begun', version = notifications.version + 1, attempt = GREATEST(notifications.attempt, :attempt),
    digest = :digest, updated_at = now()
WHERE COALESCE(notifications.digest, :digest) = :digest
  AND (notifications.state = 'failed'
       OR notifications.state IN ('begun', 'unknown') AND notifications.attempt < :attempt)
RETURNING version, progress, created_at;

-- name: get_notification
SELECT state, outcome, progress, COALESCE(digest, :digest) = :digest AS same FROM notifications WHERE id = :id;

-- name: end_notification
-- The outcome of the one that began at version :version.
UPDATE notifications
SET state = :state, outcome = :outcome, progress = COALESCE(:progress, progress), updated_at = now()
WHERE id = :id AND version = :version AND state = 'begun'
RETURNING id;
