-- Dead letters: storing, browsing and replaying them. A filter is six parameters, each NULL where it does not matter.

-- name: add_dead_letters
-- Stored once for each identity. The reason and the payload of a task come from its row, which no replay can have
-- changed: replays start from here. Its class may be too long for an index: it is cut to :longest characters. Its cause
-- is that of the settlement. Where there is none yet, the reason is returned (`set_causes`).
INSERT INTO dead_letters (id, identity, tenant, task_id, task_version, type, error_class, reason, attempts, payload,
                          traceparent, origin, record_key, record_value, record_headers, cause)
SELECT i.id, i.identity, COALESCE(t.tenant, 'default'), i.task_id, i.task_version, COALESCE(t.type, i.type),
       CASE WHEN length(t.error_class) > :longest::integer THEN left(t.error_class, :longest - 1) || '…'
            ELSE COALESCE(t.error_class, i.error_class) END,
       COALESCE(t.error_reason, i.reason), COALESCE(t.attempts, i.attempts),
       t.payload, COALESCE(t.traceparent, i.traceparent), i.origin, i.record_key, i.record_value, i.record_headers,
       CASE WHEN t.id IS NULL THEN i.cause
            ELSE (SELECT p.cause FROM parked p WHERE p.task_id = t.id AND p.state = 'dead') END
FROM unnest(
    :ids::uuid[], :identities::text[], :task_ids::uuid[], :task_versions::integer[], :types::text[],
    :error_classes::text[], :reasons::text[], :attempts::integer[], :traceparents::text[],
    :origins::text[], :record_keys::bytea[], :record_values::bytea[], :record_headers::text[], :causes::text[]
) AS i (id, identity, task_id, task_version, type, error_class, reason, attempts, traceparent, origin, record_key,
        record_value, record_headers, cause)
LEFT JOIN tasks t
    ON t.id = i.task_id AND t.id = ANY(:task_ids) AND t.id BETWEEN :least AND :greatest
       AND t.version = i.task_version AND t.state = 'dead'
ORDER BY i.identity
ON CONFLICT (identity) DO NOTHING
RETURNING id, error_class, CASE WHEN cause IS NULL THEN reason END AS reason;

-- name: letters_without_cause
-- At most :limit of those from before there were causes, or without one for another reason.
SELECT id, error_class, reason FROM dead_letters WHERE cause IS NULL ORDER BY id LIMIT :limit;

-- name: set_causes
WITH free AS MATERIALIZED (
    SELECT id FROM dead_letters WHERE id = ANY(:ids) AND cause IS NULL ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE dead_letters d SET cause = (:causes::text[])[width_bucket(d.id, :ids::uuid[])]
WHERE d.id = ANY(ARRAY(SELECT id FROM free));

-- name: parked_without_cause
-- The same of held and dead tasks.
SELECT p.task_id AS id, t.version, COALESCE(t.error_class, '') AS error_class, COALESCE(t.error_reason, '') AS reason
FROM (SELECT task_id FROM parked WHERE cause IS NULL AND state IN ('dead', 'uncertain') ORDER BY task_id LIMIT :limit) p
CROSS JOIN LATERAL (SELECT version, error_class, error_reason FROM tasks WHERE id = p.task_id OFFSET 0) AS t;

-- name: set_parked_causes
-- Unless the task has changed since it was read.
WITH free AS MATERIALIZED (
    SELECT task_id FROM parked WHERE task_id = ANY(:ids) AND cause IS NULL ORDER BY task_id FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE parked p SET cause = (:causes::text[])[width_bucket(p.task_id, :ids::uuid[])]
WHERE p.task_id = ANY(ARRAY(SELECT task_id FROM free))
  AND (:versions::integer[])[width_bucket(p.task_id, :ids::uuid[])]
      = (SELECT version FROM (SELECT version FROM tasks WHERE id = p.task_id OFFSET 0) AS t);

-- name: forget_counts
-- Counts that came to nothing, those of hours that no trend shows, and all but the last :images images of each type's
-- handler. Counts that are being changed are left for the next time: whoever changes them must not wait for this.
WITH forgotten AS (
    DELETE FROM handler_images h
    WHERE since < (SELECT since FROM handler_images WHERE type = h.type ORDER BY since DESC OFFSET :images - 1 LIMIT 1)
)
DELETE FROM dead_letter_counts WHERE (tenant, state, hour, cause, type, error_class) IN (
    SELECT tenant, state, hour, cause, type, error_class FROM dead_letter_counts
    WHERE letters = 0 OR hour > '-infinity' AND hour < now() - interval '2 days'
    ORDER BY tenant, state, hour, cause, type, error_class FOR UPDATE SKIP LOCKED
);

-- name: page_of_dead_letters
-- Newest first, behind the place (:behind_at, :behind_id) of the last one on the page before; at most :limit.
WITH page AS MATERIALIZED (
    SELECT id, task_id, type, error_class, cause, reason, attempts, origin, created_at, state, discarded_at,
           discard_reason
    FROM dead_letters
    WHERE tenant = :tenant
      AND (:type::text IS NULL OR type = :type)
      AND (:error_class::text IS NULL OR error_class = :error_class)
      AND (:created_after::timestamptz IS NULL OR created_at >= :created_after)
      AND (:created_before::timestamptz IS NULL OR created_at < :created_before)
      AND (:origin_topic::text IS NULL OR origin_topic(origin) = :origin_topic)
      AND (:cause::text IS NULL OR cause = :cause)
      AND (:state::text IS NULL OR state = :state)
      AND (created_at, id)
          < (COALESCE(:behind_at::timestamptz, 'infinity'),
             COALESCE(:behind_id::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
    ORDER BY created_at DESC, id DESC LIMIT :limit
)
SELECT page.*, r.replays
FROM page
CROSS JOIN LATERAL (
    SELECT array_agg(ARRAY[to_char(r.replayed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), r.task_id::text,
                           replay_outcome(t.state, t.replays, r.replay), r.bulk_id::text] ORDER BY r.replayed_at)
               AS replays
    FROM dead_letter_replays r LEFT JOIN task_states t ON t.id = r.task_id
    WHERE r.letter_id = page.id
) AS r
ORDER BY page.created_at DESC, page.id DESC;

-- name: groups_of_dead_letters
-- How many there are by type and cause, from their counts alone: the largest groups first, at most :limit; each row has
-- the sums over all groups.
WITH counted AS MATERIALIZED (
    SELECT type, error_class, cause, sum(letters)::integer AS letters
    FROM dead_letter_counts
    WHERE tenant = :tenant AND hour = '-infinity' AND letters > 0
      AND (:state::text IS NULL OR state = :state)
      AND (:type::text IS NULL OR type = :type)
      AND (:error_class::text IS NULL OR error_class = :error_class)
      AND (:cause::text IS NULL OR cause = :cause)
    GROUP BY type, error_class, cause
)
SELECT NULLIF(type, '') AS type, error_class, NULLIF(cause, '') AS cause, letters, NULL::timestamptz AS oldest,
       NULL::timestamptz AS newest, (count(*) OVER ())::integer AS all_groups, (sum(letters) OVER ())::integer AS all_letters
FROM counted ORDER BY letters DESC, type, error_class, cause LIMIT :limit;

-- name: groups_looked_at
-- The same by a filter that the counts do not have (:created_after, :created_before, :origin_topic): dead letters are
-- read in the order of the table, which is fastest where most of them match.
WITH counted AS MATERIALIZED (
    SELECT type || '' AS type, error_class || '' AS error_class, cause || '' AS cause, count(*)::integer AS letters,
           min(created_at) AS oldest, max(created_at) AS newest
    FROM dead_letters
    WHERE tenant = :tenant
      AND (:type::text IS NULL OR type = :type)
      AND (:error_class::text IS NULL OR error_class = :error_class)
      AND (:created_after::timestamptz IS NULL OR created_at >= :created_after)
      AND (:created_before::timestamptz IS NULL OR created_at < :created_before)
      AND (:origin_topic::text IS NULL OR origin_topic(origin) = :origin_topic)
      AND (:cause::text IS NULL OR cause = :cause)
      AND (:state::text IS NULL OR state = :state)
    GROUP BY type || '', error_class || '', cause || ''
)
SELECT type, error_class, cause, letters, oldest, newest, (count(*) OVER ())::integer AS all_groups,
       (sum(letters) OVER ())::integer AS all_letters
FROM counted ORDER BY letters DESC, type, error_class, cause LIMIT :limit;

-- name: about_groups
-- About each of these groups: its oldest and newest dead letter in :state, the latter as a sample; when the cause was
-- first and last seen, whatever became of that.
SELECT oldest.created_at AS oldest, newest.created_at AS newest, newest.id AS sample, newest.reason,
       first.created_at AS first_seen, last.created_at AS last_seen
FROM unnest(:types::text[], :causes::text[]) WITH ORDINALITY AS asked (type, cause, place)
LEFT JOIN LATERAL (
    SELECT created_at FROM dead_letters d
    WHERE d.cause = asked.cause AND d.tenant = :tenant AND (d.type = asked.type OR d.type IS NULL AND asked.type IS NULL)
      AND (:state::text IS NULL OR d.state = :state)
    ORDER BY d.created_at, d.id LIMIT 1
) AS oldest ON true
LEFT JOIN LATERAL (
    SELECT created_at, id, reason FROM dead_letters d
    WHERE d.cause = asked.cause AND d.tenant = :tenant AND (d.type = asked.type OR d.type IS NULL AND asked.type IS NULL)
      AND (:state::text IS NULL OR d.state = :state)
    ORDER BY d.created_at DESC, d.id DESC LIMIT 1
) AS newest ON true
LEFT JOIN LATERAL (
    SELECT created_at FROM dead_letters d
    WHERE d.cause = asked.cause AND d.tenant = :tenant AND (d.type = asked.type OR d.type IS NULL AND asked.type IS NULL)
    ORDER BY d.created_at, d.id LIMIT 1
) AS first ON true
LEFT JOIN LATERAL (
    SELECT created_at FROM dead_letters d
    WHERE d.cause = asked.cause AND d.tenant = :tenant AND (d.type = asked.type OR d.type IS NULL AND asked.type IS NULL)
    ORDER BY d.created_at DESC, d.id DESC LIMIT 1
) AS last ON true
ORDER BY asked.place;

-- name: trend_of_causes
-- How many dead letters of these causes came in each of the last :hours, counted back from this one.
SELECT NULLIF(type, '') AS type, cause, sum(letters)::integer AS letters,
       (extract(epoch FROM date_trunc('hour', now(), 'UTC') - hour) / 3600)::integer AS hours_ago
FROM dead_letter_counts
WHERE tenant = :tenant AND state IN ('open', 'replayed', 'discarded') AND cause = ANY(:causes)
  AND hour > date_trunc('hour', now(), 'UTC') - make_interval(hours => :hours)
  AND hour <= date_trunc('hour', now(), 'UTC')
GROUP BY type, cause, hour;

-- name: images_of_handlers
-- The images of these types' handlers, in the order in which they began to run.
SELECT type, image, since FROM handler_images WHERE type = ANY(:types) ORDER BY type, since;

-- name: count_dead_letters
SELECT count(*)::integer AS letters
FROM dead_letters
WHERE tenant = :tenant
  AND (:type::text IS NULL OR type = :type)
  AND (:error_class::text IS NULL OR error_class = :error_class)
  AND (:created_after::timestamptz IS NULL OR created_at >= :created_after)
  AND (:created_before::timestamptz IS NULL OR created_at < :created_before)
  AND (:origin_topic::text IS NULL OR origin_topic(origin) = :origin_topic)
  AND (:cause::text IS NULL OR cause = :cause)
  AND (:state::text IS NULL OR state = :state);

-- name: get_dead_letter
-- All about one. `task_state` is NULL where its task was deleted.
SELECT d.id, d.tenant, d.task_id, d.task_version, d.type, d.error_class, d.cause, d.reason, d.attempts, d.payload, d.traceparent,
       d.origin, d.record_key, d.record_value, d.record_headers, d.created_at, d.state, d.discarded_at,
       d.discard_reason,
       t.state AS task_state, t.timeline, r.replays
FROM dead_letters d LEFT JOIN task_states t ON t.id = d.task_id
CROSS JOIN LATERAL (
    SELECT array_agg(ARRAY[to_char(r.replayed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), r.task_id::text,
                           replay_outcome(n.state, n.replays, r.replay), r.bulk_id::text] ORDER BY r.replayed_at)
               AS replays
    FROM dead_letter_replays r LEFT JOIN task_states n ON n.id = r.task_id
    WHERE r.letter_id = d.id
) AS r
WHERE d.id = :id AND d.tenant = :tenant;

-- name: discard_dead_letter
UPDATE dead_letters SET state = 'discarded', discarded_at = now(), discard_reason = :reason
WHERE id = :id AND tenant = :tenant AND state = 'open'
RETURNING id;

-- Replays. The state of a dead letter is compared and set together with its task's, so that none is replayed twice,
-- however often that is requested. Locks are taken in this order: the bulk replay, tasks in id order, dead letters.

-- name: replay_dead_letters
-- Those of :letters whose tasks are dead at the same version; :payload replaces the payload of an edited one. As :batch
-- of the bulk replay :bulk (both NULL for a single one) they are due at its rate, and it moves on to the cursor
-- (:cursor_at, :cursor_id); :last: it has ended.
WITH job AS MATERIALIZED (
    SELECT id, rate FROM bulk_replays
    WHERE id = :bulk AND tenant = :tenant AND status IN ('running', 'canary') AND batches = :batch FOR UPDATE
), candidates AS MATERIALIZED (
    SELECT id, task_id, task_version FROM dead_letters
    WHERE id = ANY(:letters::uuid[]) AND tenant = :tenant AND state = 'open' AND task_id IS NOT NULL
      AND (:bulk::uuid IS NULL OR EXISTS (SELECT FROM job))
), batch AS MATERIALIZED (
    SELECT array_agg(task_id ORDER BY task_id) AS ids, array_agg(task_version ORDER BY task_id) AS versions,
           array_agg(id ORDER BY task_id) AS letters
    FROM (
        SELECT DISTINCT ON (task_id) id, task_id, task_version FROM candidates ORDER BY task_id, task_version DESC
    ) AS c
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
        losses = 0, replays = t.replays + 1, payload = COALESCE(:payload::text, t.payload), updated_at = now(),
        due_at = now(),
        expires_at = CASE WHEN t.expires_at > now() THEN t.expires_at END,  -- a person wants it to run anyway
        error_class = NULL, error_reason = NULL,
        timeline = timeline_add(t.timeline, (SELECT timeline_now()) || '|replayed|scheduled|0|1|' || :note::text)
    FROM opened
    WHERE opened.letter = (SELECT letters FROM batch)[width_bucket(t.id, (SELECT ids FROM batch))]
      AND t.id = ANY(ARRAY(SELECT task_id FROM opened))
    RETURNING t.id, t.type, t.version, t.replays, t.expires_at, t.traceparent, opened.letter, opened.error_class,
              opened.place
), waiting AS (
    INSERT INTO due (task_id, type, version, publish_at, expires_at)
    SELECT id, type, version, now() + make_interval(secs => COALESCE((place - 1) / (SELECT rate FROM job), 0)),
           expires_at
    FROM replayed ORDER BY id
    ON CONFLICT (task_id, dead) DO UPDATE
    SET version = EXCLUDED.version, publish_at = EXCLUDED.publish_at, expires_at = EXCLUDED.expires_at
), cleared AS (
    DELETE FROM suspects WHERE task_id = ANY(ARRAY(SELECT id FROM replayed))
), closed AS (
    UPDATE dead_letters SET state = 'replayed' WHERE id = ANY(ARRAY(SELECT letter FROM replayed))
), noted AS (
    INSERT INTO dead_letter_replays (letter_id, task_id, replay, edited, bulk_id)
    SELECT letter, id, replays, :payload IS NOT NULL, :bulk::uuid FROM replayed
), counted AS (
    UPDATE bulk_replays b
    SET replayed = b.replayed + (SELECT count(*) FROM replayed)::integer,
        skipped = CASE WHEN :last::boolean
                       THEN GREATEST(b.matched - b.replayed - (SELECT count(*) FROM replayed)::integer, 0)
                       ELSE b.skipped + cardinality(:letters) - (SELECT count(*) FROM replayed)::integer END,
        paced_at = CASE WHEN b.paced_at > now() + interval '1 second' THEN now()
                        ELSE GREATEST(b.paced_at, now() - make_interval(secs => GREATEST(2, 1 / b.rate)))
                             + make_interval(secs => cardinality(:letters) / b.rate) END,
        cursor_at = COALESCE(:cursor_at::timestamptz, b.cursor_at), cursor_id = COALESCE(:cursor_id::uuid, b.cursor_id),
        status = CASE WHEN :last THEN 'finished' ELSE b.status END, batches = b.batches + 1, updated_at = now()
    FROM job WHERE b.id = job.id
)
SELECT letter, id AS task_id, type, error_class, traceparent FROM replayed;

-- name: replay_as_new_task
-- A dead letter that has no task (any more) becomes the new task :id: a record that was repaired. The relay publishes
-- it to its type's topic.
WITH opened AS MATERIALIZED (
    SELECT id, tenant, error_class FROM dead_letters d
    WHERE id = :letter AND tenant = :tenant AND state = 'open'
      AND NOT EXISTS (SELECT FROM tasks WHERE id = ANY(ARRAY(SELECT task_id FROM dead_letters WHERE id = :letter)))
    FOR UPDATE
), accepted AS (
    INSERT INTO tasks (id, tenant, type, payload, max_attempts, traceparent, timeline)
    SELECT :id, tenant, :type, :payload, :max_attempts, :traceparent,
           ARRAY[(SELECT timeline_now()) || '|accepted|scheduled|0|1|from dead letter ' || id]
    FROM opened
    RETURNING id, type, traceparent
), waiting AS (
    INSERT INTO due (task_id, type, version, publish_at) SELECT id, type, 1, now() FROM accepted
), closed AS (
    UPDATE dead_letters d SET state = 'replayed' FROM opened WHERE d.id = opened.id
), noted AS (
    INSERT INTO dead_letter_replays (letter_id, task_id, replay, edited) SELECT id, :id, 0, :edited FROM opened
)
SELECT o.id AS letter, a.id AS task_id, a.type, o.error_class, a.traceparent FROM opened o CROSS JOIN accepted a;

-- Bulk jobs: requested once, carried on batch by batch by the leader. Their status is `canary` while the first dead
-- letters are tried, `running` or `discarding`, and then `finished` or `stopped`.

-- name: start_bulk_replay
-- :filter is the filter as JSON.
WITH found AS (
    SELECT count(*)::integer AS letters
    FROM dead_letters
    WHERE tenant = :tenant AND state = 'open'
      AND (:type::text IS NULL OR type = :type)
      AND (:error_class::text IS NULL OR error_class = :error_class)
      AND (:created_after::timestamptz IS NULL OR created_at >= :created_after)
      AND (:created_before::timestamptz IS NULL OR created_at < :created_before)
      AND (:origin_topic::text IS NULL OR origin_topic(origin) = :origin_topic)
      AND (:cause::text IS NULL OR cause = :cause)
)
INSERT INTO bulk_replays (id, tenant, filter, rate, status, matched, action, who, reason, canary, canary_seconds,
                          most_failures)
SELECT :id, :tenant, :filter, :rate,
       CASE WHEN letters = 0 THEN 'finished' WHEN :reason::text IS NOT NULL THEN 'discarding'
            WHEN :canary::integer > 0 THEN 'canary' ELSE 'running' END,
       letters, CASE WHEN :reason IS NULL THEN 'replay' ELSE 'discard' END, :who, :reason, :canary, :canary_seconds,
       :most_failures
FROM found
RETURNING id, matched, status, action;

-- name: recent_throughput
-- How many tasks of a type have ended a second, over the last minute; only the newest :look are looked at.
SELECT count(*) FILTER (WHERE updated_at > now() - interval '1 minute')::float8 / 60 AS rate
FROM (SELECT state, updated_at FROM tasks WHERE type = :type ORDER BY type DESC, id DESC LIMIT :look) AS newest
WHERE state IN ('succeeded', 'dead');

-- name: list_bulk_replays
-- Newest first, behind :behind.
SELECT id, action, who, reason, filter, rate, status, matched, replayed, skipped, canary, most_failures,
       stopped_because, created_at, updated_at
FROM bulk_replays
WHERE tenant = :tenant AND id < COALESCE(:behind::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
ORDER BY id DESC LIMIT :limit;

-- name: get_bulk_replay
SELECT id, action, who, reason, filter, rate, status, matched, replayed, skipped, canary, most_failures,
       stopped_because, created_at, updated_at
FROM bulk_replays WHERE id = :id AND tenant = :tenant;

-- name: new_causes_of_bulk
-- Of the tasks that a job replayed and that died again: the causes that none of its dead letters had.
SELECT again.cause, count(*)::integer AS letters
FROM dead_letter_replays r JOIN dead_letters d ON d.id = r.letter_id
CROSS JOIN LATERAL (
    SELECT cause FROM dead_letters n WHERE n.task_id = r.task_id AND n.task_version > COALESCE(d.task_version, 0)
    ORDER BY n.task_version LIMIT 1
) AS again
WHERE r.bulk_id = :id AND again.cause NOT IN (
    SELECT o.cause FROM dead_letter_replays x JOIN dead_letters o ON o.id = x.letter_id
    WHERE x.bulk_id = :id AND o.cause IS NOT NULL
)
GROUP BY again.cause ORDER BY 2 DESC, 1 LIMIT 20;

-- name: recent_of_bulk
-- How the last :most replays of a job went: how many have no outcome yet, and how many of the last :judged outcomes were
-- failures. A task that was replayed again had failed in between.
WITH recent AS MATERIALIZED (
    SELECT task_id, replay, replayed_at FROM dead_letter_replays
    WHERE bulk_id = :id ORDER BY replayed_at DESC LIMIT :most
), outcome AS MATERIALIZED (
    SELECT r.replayed_at, CASE WHEN t.replays > r.replay OR t.state IN ('dead', 'uncertain') THEN true
                               WHEN t.state IS NULL OR t.state IN ('succeeded', 'cancelled') THEN false END AS failed
    FROM recent r
    LEFT JOIN LATERAL (SELECT state, replays FROM tasks WHERE id = r.task_id OFFSET 0) AS t ON true
)
SELECT (SELECT count(*) FROM outcome WHERE failed IS NULL)::integer AS under_way,
       (SELECT count(*) FROM (
           SELECT failed FROM outcome WHERE failed IS NOT NULL ORDER BY replayed_at DESC LIMIT :judged
        ) AS last WHERE failed)::integer AS failed;

-- name: canary_of_bulk
-- Each replay of a job's canary: its dead letter's cause, and where its task is now.
SELECT d.cause, t.state, t.error_class, t.error_reason, COALESCE(t.replays > r.replay, false) AS replayed_again
FROM dead_letter_replays r JOIN dead_letters d ON d.id = r.letter_id
LEFT JOIN LATERAL (SELECT state, replays, error_class, error_reason FROM tasks WHERE id = r.task_id OFFSET 0) AS t ON true
WHERE r.bulk_id = :id;

-- name: pass_canary
UPDATE bulk_replays SET status = 'running', paced_at = now(), updated_at = now() WHERE id = :id AND status = 'canary';

-- name: discard_of_bulk
-- :letters are discarded as :batch of the job :bulk, which moves on to the cursor; :last: it has ended.
WITH job AS MATERIALIZED (
    SELECT id, reason FROM bulk_replays
    WHERE id = :bulk AND tenant = :tenant AND status = 'discarding' AND batches = :batch FOR UPDATE
), locked AS MATERIALIZED (
    SELECT id FROM dead_letters
    WHERE id = ANY(:letters::uuid[]) AND tenant = :tenant AND state = 'open' AND EXISTS (SELECT FROM job)
    ORDER BY id FOR UPDATE
), discarded AS (
    UPDATE dead_letters SET state = 'discarded', discarded_at = now(), discard_reason = (SELECT reason FROM job)
    WHERE id = ANY(ARRAY(SELECT id FROM locked))
    RETURNING id
)
UPDATE bulk_replays b
SET replayed = b.replayed + (SELECT count(*) FROM discarded)::integer,
    skipped = CASE WHEN :last::boolean
                   THEN GREATEST(b.matched - b.replayed - (SELECT count(*) FROM discarded)::integer, 0)
                   ELSE b.skipped + cardinality(:letters) - (SELECT count(*) FROM discarded)::integer END,
    cursor_at = COALESCE(:cursor_at::timestamptz, b.cursor_at), cursor_id = COALESCE(:cursor_id::uuid, b.cursor_id),
    status = CASE WHEN :last THEN 'finished' ELSE b.status END, batches = b.batches + 1, updated_at = now()
FROM job WHERE b.id = job.id;

-- name: bulk_replay_outcomes
SELECT replay_outcome(t.state, t.replays, r.replay) AS outcome, count(*)::integer AS letters
FROM dead_letter_replays r LEFT JOIN task_states t ON t.id = r.task_id
WHERE r.bulk_id = :id GROUP BY 1;

-- name: stop_bulk_replay
-- What it has replayed stays replayed; all others stay open.
UPDATE bulk_replays SET status = 'stopped', stopped_because = :because, updated_at = now()
WHERE id = :id AND tenant = :tenant AND status IN ('running', 'canary', 'discarding')
RETURNING id;

-- name: running_bulk_replays
-- `allowance` is what its rate allows now: what was not used for longer than two seconds is lost. A pace in the future
-- is from before the clock was set back, and begins again with the next dead letter.
SELECT id, tenant, filter, batches AS batch, cursor_at, cursor_id, created_at, status, replayed, canary, most_failures,
       (extract(epoch FROM now() - updated_at) > canary_seconds) AS overdue,
       CASE WHEN status = 'discarding' THEN 500
            WHEN paced_at > now() + interval '1 second' THEN 1
            ELSE floor(LEAST(extract(epoch FROM now() - paced_at)::float8, GREATEST(2, 1 / rate)) * rate + 1e-6)
       END::integer AS allowance,
       matched - replayed - skipped AS rest
FROM bulk_replays WHERE status IN ('running', 'canary', 'discarding') ORDER BY created_at LIMIT :limit;

-- name: next_of_bulk_replay
-- The next :limit behind the cursor (:cursor_at, :cursor_id), oldest first, of those that existed when it was requested
-- (:asked_at).
SELECT id, created_at FROM dead_letters
WHERE tenant = :tenant AND state = 'open'
  AND (:type::text IS NULL OR type = :type)
  AND (:error_class::text IS NULL OR error_class = :error_class)
  AND (:created_after::timestamptz IS NULL OR created_at >= :created_after)
  AND (:created_before::timestamptz IS NULL OR created_at < :created_before)
  AND (:origin_topic::text IS NULL OR origin_topic(origin) = :origin_topic)
  AND (:cause::text IS NULL OR cause = :cause)
  AND created_at <= :asked_at AND (created_at, id)
      > (COALESCE(:cursor_at::timestamptz, '-infinity'),
         COALESCE(:cursor_id::uuid, '00000000-0000-0000-0000-000000000000'))
ORDER BY created_at, id LIMIT :limit;
