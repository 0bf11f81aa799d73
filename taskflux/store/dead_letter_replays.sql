-- Sending dead letters again. The letter's state is compared and set with its task's, so that no letter is sent twice,
-- whoever asks and however often. Locks are taken in this order: the bulk replay, tasks in id order, letters.

-- name: replay_dead_letters
-- Letters $1 whose tasks stand dead at the version that they tell of; $3 replaces the payload of an edited one. As
-- batch $5 of the bulk replay $4 (both NULL for a single one) they are due at its rate, and it moves on to the cursor
-- ($6, $7), the last of its letters where $8 says so.
WITH job AS MATERIALIZED (
    SELECT id, rate FROM bulk_replays WHERE id = $4 AND tenant = $2 AND status = 'running' AND batches = $5 FOR UPDATE
), candidates AS MATERIALIZED (
    SELECT id, task_id, task_version FROM dead_letters
    WHERE id = ANY($1::uuid[]) AND tenant = $2 AND state = 'open' AND task_id IS NOT NULL
      AND ($4::uuid IS NULL OR EXISTS (SELECT FROM job))
), batch AS MATERIALIZED (
    SELECT array_agg(task_id ORDER BY task_id) AS ids, array_agg(task_version ORDER BY task_id) AS versions,
           array_agg(id ORDER BY task_id) AS letters
    FROM (SELECT DISTINCT ON (task_id) id, task_id, task_version FROM candidates ORDER BY task_id, task_version DESC) AS c
), locked AS (
    SELECT t.id, (SELECT letters FROM batch)[width_bucket(t.id, (SELECT ids FROM batch))] AS letter FROM tasks t
    WHERE t.id = ANY((SELECT ids FROM batch)::uuid[])
      AND t.version = (SELECT versions FROM batch)[width_bucket(t.id, (SELECT ids FROM batch))] AND t.state = 'dead'
    ORDER BY t.id FOR UPDATE
), opened AS MATERIALIZED (
    SELECT letter, task_id, error_class, row_number() OVER () AS place
    FROM (
        SELECT d.id AS letter, l.id AS task_id, d.error_class FROM dead_letters d JOIN locked l ON l.letter = d.id
        WHERE d.id = ANY(ARRAY(SELECT letter FROM locked)) AND d.state = 'open' ORDER BY d.id FOR UPDATE OF d
    ) AS d
), replayed AS (
    UPDATE tasks t
    SET state = 'scheduled', version = t.version + 1, claim_version = NULL, worker = NULL, attempts = 0, handbacks = 0,
        replays = t.replays + 1, payload = COALESCE($3::text, t.payload), updated_at = now(), due_at = now(),
        expires_at = CASE WHEN t.expires_at > now() THEN t.expires_at END,  -- a person wants it to run all the same
        error_class = NULL, error_reason = NULL,
        timeline = timeline_add(t.timeline, (SELECT timeline_now()) || '|replayed|scheduled|0|1|' || $9::text)
    FROM opened
    WHERE opened.letter = (SELECT letters FROM batch)[width_bucket(t.id, (SELECT ids FROM batch))]
      AND t.id = ANY(ARRAY(SELECT task_id FROM opened))
    RETURNING t.id, t.type, t.version, t.replays, t.expires_at, t.traceparent, opened.letter, opened.error_class,
              opened.place
), waiting AS (
    INSERT INTO due (task_id, type, version, publish_at, expires_at)
    SELECT id, type, version, now() + make_interval(secs => COALESCE((place - 1) / (SELECT rate FROM job), 0)), expires_at
    FROM replayed ORDER BY id
    ON CONFLICT (task_id, dead) DO UPDATE
    SET version = EXCLUDED.version, publish_at = EXCLUDED.publish_at, expires_at = EXCLUDED.expires_at
), closed AS (
    UPDATE dead_letters SET state = 'replayed' WHERE id = ANY(ARRAY(SELECT letter FROM replayed))
), noted AS (
    INSERT INTO dead_letter_replays (letter_id, task_id, replay, edited, bulk_id)
    SELECT letter, id, replays, $3 IS NOT NULL, $4::uuid FROM replayed
), counted AS (
    UPDATE bulk_replays b
    SET replayed = b.replayed + (SELECT count(*) FROM replayed)::integer,
        skipped = CASE WHEN $8::boolean THEN GREATEST(b.matched - b.replayed - (SELECT count(*) FROM replayed)::integer, 0)
                       ELSE b.skipped + cardinality($1) - (SELECT count(*) FROM replayed)::integer END,
        paced_at = GREATEST(b.paced_at, now() - make_interval(secs => GREATEST(2, 1 / b.rate)))
                   + make_interval(secs => cardinality($1) / b.rate),
        cursor_at = COALESCE($6::timestamptz, b.cursor_at), cursor_id = COALESCE($7::uuid, b.cursor_id),
        status = CASE WHEN $8 THEN 'finished' ELSE b.status END, batches = b.batches + 1, updated_at = now()
    FROM job WHERE b.id = job.id
)
SELECT letter, id AS task_id, type, error_class, traceparent FROM replayed;

-- name: replay_as_new_task
-- A letter that has no task, or none any more, becomes the new task $3: a record that was mended. The relay publishes
-- it to its type's topic.
WITH opened AS MATERIALIZED (
    SELECT id, tenant, error_class FROM dead_letters d
    WHERE id = $1 AND tenant = $2 AND state = 'open'
      AND NOT EXISTS (SELECT FROM tasks WHERE id = ANY(ARRAY(SELECT task_id FROM dead_letters WHERE id = $1)))
    FOR UPDATE
), accepted AS (
    INSERT INTO tasks (id, tenant, type, payload, max_attempts, traceparent, timeline)
    SELECT $3, tenant, $4, $5, $6, $7,
           ARRAY[(SELECT timeline_now()) || '|accepted|scheduled|0|1|from dead letter ' || id]
    FROM opened
    RETURNING id, type, traceparent
), waiting AS (
    INSERT INTO due (task_id, type, version, publish_at) SELECT id, type, 1, now() FROM accepted
), closed AS (
    UPDATE dead_letters d SET state = 'replayed' FROM opened WHERE d.id = opened.id
), noted AS (
    INSERT INTO dead_letter_replays (letter_id, task_id, replay, edited) SELECT id, $3, 0, $8 FROM opened
)
SELECT o.id AS letter, a.id AS task_id, a.type, o.error_class, a.traceparent FROM opened o CROSS JOIN accepted a;
