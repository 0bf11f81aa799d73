-- Tasks: accepting, reading and listing them, what a person decides about one, and their types.

-- Accepting

-- name: insert_tasks
-- A group commit of submissions without idempotency keys. It fails if one of them exists: an earlier try has written it,
-- and its answer was lost (insert_keyed). An array may be empty in place of NULLs alone, that of delays in place of
-- zeros, and those of tenants, types, budgets and traceparents where all are the same (:tenant, :type, :budget,
-- :traceparent). One row is returned: when they were created, and those that are due later.
WITH accepted AS (
    INSERT INTO tasks (
        id, tenant, type, payload, max_attempts, key, due_at, expires_at, metadata, traceparent, timeline
    )
    SELECT id, COALESCE(:tenant, tenant), COALESCE(:type, type), payload, COALESCE(:budget, budget), key,
           GREATEST(now(), COALESCE(schedule_at, now() + make_interval(secs => delay))),
           expires_at, metadata, COALESCE(:traceparent, traceparent),
           (SELECT ARRAY[timeline_now() || '|accepted|scheduled|0|1|'])
    FROM unnest(
        :ids::uuid[], :tenants::text[], :types::text[], :payloads::text[], :budgets::integer[], :keys::text[],
        :schedule_at::timestamptz[], :delays::float8[], :expires_at::timestamptz[], :metadata::text[],
        :traceparents::text[]
    ) AS i (id, tenant, type, payload, budget, key, schedule_at, delay, expires_at, metadata, traceparent)
    RETURNING id, type, due_at, expires_at
), waiting AS (
    INSERT INTO due (task_id, type, version, publish_at, expires_at)
    SELECT id, type, 1, CASE WHEN due_at <= now() THEN now() + make_interval(secs => :grace) ELSE due_at END,
           expires_at
    FROM accepted
)
SELECT now() AS created_at, ARRAY(SELECT id FROM accepted WHERE due_at > now()) AS later;

-- name: insert_keyed
-- The same for submissions of which some have an idempotency key, or may exist. A repeated key inserts nothing and is
-- answered by find_keys. A row is returned for each that was inserted.
WITH input AS (
    SELECT id, COALESCE(:tenant, tenant) AS tenant, COALESCE(:type, type) AS type, payload,
           COALESCE(:budget, budget) AS budget, key, schedule_at, delay, expires_at, metadata,
           COALESCE(:traceparent, traceparent) AS traceparent, idempotency_key, digest, ttl
    FROM unnest(
        :ids::uuid[], :tenants::text[], :types::text[], :payloads::text[], :budgets::integer[], :keys::text[],
        :schedule_at::timestamptz[], :delays::float8[], :expires_at::timestamptz[], :metadata::text[],
        :traceparents::text[], :idempotency_keys::text[], :digests::bytea[], :ttls::float8[]
    ) AS i (id, tenant, type, payload, budget, key, schedule_at, delay, expires_at, metadata, traceparent,
            idempotency_key, digest, ttl)
), keyed AS (
    INSERT INTO idempotency_keys (tenant, key, task_id, type, digest, expires_at)
    SELECT tenant, idempotency_key, id, type, digest, now() + make_interval(secs => ttl)
    FROM input WHERE idempotency_key IS NOT NULL ORDER BY tenant, idempotency_key
    ON CONFLICT (tenant, key) DO UPDATE
    SET task_id = EXCLUDED.task_id, type = EXCLUDED.type, digest = EXCLUDED.digest,
        created_at = now(), expires_at = EXCLUDED.expires_at
    WHERE idempotency_keys.expires_at <= now()
    RETURNING task_id
), accepted AS (
    INSERT INTO tasks (
        id, tenant, type, payload, max_attempts, key, due_at, expires_at, metadata, traceparent, timeline
    )
    SELECT id, tenant, type, payload, budget, key,
           GREATEST(now(), COALESCE(schedule_at, now() + make_interval(secs => delay))),
           expires_at, metadata, traceparent, (SELECT ARRAY[timeline_now() || '|accepted|scheduled|0|1|'])
    FROM input WHERE idempotency_key IS NULL OR id IN (SELECT task_id FROM keyed) ORDER BY id
    ON CONFLICT (id) DO NOTHING
    RETURNING id, type, created_at, due_at, expires_at
), waiting AS (
    INSERT INTO due (task_id, type, version, publish_at, expires_at)
    SELECT id, type, 1, CASE WHEN due_at <= now() THEN now() + make_interval(secs => :grace) ELSE due_at END,
           expires_at
    FROM accepted
)
SELECT id, created_at, due_at <= now() AS due_now FROM accepted;

-- name: find_keys
-- The tasks of idempotency keys.
SELECT tenant, key, task_id, type, digest, created_at
FROM idempotency_keys
WHERE tenant = ANY(:tenants) AND key = ANY(:keys)
  AND (tenant, key) IN (SELECT * FROM unnest(:tenants::text[], :keys::text[]));

-- name: find_created
-- Which of these ids already exist (an insert whose answer was lost).
SELECT id, created_at FROM tasks WHERE id = ANY(:ids::uuid[]) AND id BETWEEN :least AND :greatest;

-- name: adopt
-- Rows for records of other producers that were not seen before. Those that are due now are published after :grace
-- seconds, unless the process that accepts them claims or publishes them first.
WITH input AS (
    SELECT * FROM unnest(
        :identities::text[], :digests::bytea[], :ids::uuid[], :types::text[], :payloads::text[],
        :max_attempts::integer[], :traceparents::text[], :keys::text[], :schedule_at::timestamptz[], :delays::float8[],
        :expires_at::timestamptz[], :metadata::text[]
    ) AS i (identity, digest, id, type, payload, max_attempts, traceparent, key, schedule_at, delay, expires_at,
            metadata)
), fresh AS (
    INSERT INTO foreign_tasks (identity, task_id, digest)
    SELECT identity, id, digest FROM input ORDER BY identity
    ON CONFLICT (identity) DO NOTHING
    RETURNING task_id
), accepted AS (
    INSERT INTO tasks (id, type, payload, max_attempts, key, due_at, expires_at, metadata, traceparent, timeline)
    SELECT id, type, payload, max_attempts, key,
           GREATEST(now(), COALESCE(schedule_at, now() + make_interval(secs => delay))), expires_at, metadata,
           traceparent, ARRAY[(SELECT timeline_now()) || '|accepted|scheduled|0|1|from another producer']
    FROM input WHERE id IN (SELECT task_id FROM fresh) ORDER BY id
    RETURNING id, type, due_at, expires_at
), waiting AS (
    INSERT INTO due (task_id, type, version, publish_at, expires_at)
    SELECT id, type, 1, CASE WHEN due_at <= now() THEN now() + make_interval(secs => :grace) ELSE due_at END, expires_at
    FROM accepted
)
SELECT id, due_at <= now() AS due_now FROM accepted;

-- name: find_foreign
-- Which tasks these have already become.
SELECT identity, task_id, digest FROM foreign_tasks WHERE identity = ANY(:identities::text[]);

-- Reading

-- name: get_task
SELECT id, tenant, type, state, version, attempts, max_attempts, losses, replays, key, payload, metadata,
       traceparent, created_at, updated_at, due_at, expires_at, result, error_class, error_reason, delivery, timeline
FROM task_states WHERE id = :id AND tenant = :tenant;

-- name: why_it_waits
-- What a waiting task :id of :type may wait for. `ahead`: older tasks of its type that wait to be published or claimed,
-- of :most that are looked at; of all tenants, since they share the handlers. `looked`: how many there were to look at.
-- `ended`: tasks of its type that have ended a second, over the last minute, of :newest on each side of the oldest one
-- that waits: those that are newer wait, too. Times are seconds ago.
WITH older AS MATERIALIZED (
    SELECT task_id, type, publish_at FROM due WHERE task_id < :id AND dead::integer = 0 ORDER BY task_id DESC LIMIT :most
), ahead AS MATERIALIZED (
    SELECT task_id FROM older WHERE type = :type AND (publish_at <= now() OR publish_at = never())
), front AS MATERIALIZED (
    SELECT COALESCE((SELECT task_id FROM ahead ORDER BY task_id LIMIT 1), :id) AS id
)
SELECT tt.off_handler, c.provider, COALESCE(c.open, false) AS open, c.opened_at, c.error_class, c.reason,
       (SELECT count(*) FROM workers WHERE type = :type AND NOT ended)::integer AS workers,
       (SELECT extract(epoch FROM now() - max(beat_at))::float8 FROM workers WHERE type = :type) AS seen,
       (SELECT extract(epoch FROM now() - max(expires_at))::float8 FROM leaders WHERE name = 'relay') AS leaderless,
       EXISTS (SELECT FROM suspects WHERE task_id = :id) AS suspect,
       (SELECT count(*) FROM ahead)::integer AS ahead, (SELECT count(*) FROM older)::integer AS looked,
       (SELECT count(*) FILTER (WHERE updated_at > now() - interval '1 minute')::float8 / 60
        FROM ((SELECT state, updated_at FROM tasks WHERE type = :type AND id < (SELECT id FROM front)
               ORDER BY type DESC, id DESC LIMIT :newest)
              UNION ALL
              (SELECT state, updated_at FROM tasks WHERE type = :type AND id >= (SELECT id FROM front)
               ORDER BY type, id LIMIT :newest)) AS around
        WHERE state IN ('succeeded', 'dead')) AS ended
FROM (VALUES (:type::text)) AS asked (type)
LEFT JOIN task_types tt ON tt.type = asked.type
LEFT JOIN circuits c ON c.provider = tt.provider;

-- Lists, newest first, which is the order of their ids. One of these statements finds the ids of up to :most tasks that
-- may fit, from :start on and below :below, and reads :look rows at most: `ended` is where to look next, NULL at the
-- end. `list_found` then reads those tasks.
--
-- Each of :states (of the wide row), :type, :created_from and :created_before is NULL where it does not matter; the
-- metadata must contain one of each pair of :quoted and :bare.

-- name: find_recent
-- Among all tasks, by the primary key.
WITH looked_at AS MATERIALIZED (
    SELECT id, tenant = :tenant
               AND (:states::text[] IS NULL OR state = ANY(:states)) AND (:type::text IS NULL OR type = :type)
               AND (:created_from::timestamptz IS NULL OR created_at >= :created_from)
               AND (:created_before::timestamptz IS NULL OR created_at < :created_before)
               AND (cardinality(:quoted::text[]) = 0 OR metadata IS NOT NULL AND NOT EXISTS (
                   SELECT FROM unnest(:quoted::text[], :bare::text[]) AS n (one, other)
                   WHERE strpos(metadata, one) = 0 AND strpos(metadata, other) = 0
               )) AS fits
    FROM tasks WHERE id < :below AND id >= :start
    ORDER BY id DESC LIMIT :look
), found AS MATERIALIZED (
    SELECT id FROM looked_at WHERE fits LIMIT :most
)
SELECT ARRAY(SELECT id FROM found) AS ids,
       COALESCE((SELECT id FROM found OFFSET :most - 1 LIMIT 1),
                (SELECT id FROM looked_at OFFSET :look - 1 LIMIT 1)) AS ended;

-- name: find_by_key
-- Those with one key (:key), by its index.
WITH looked_at AS MATERIALIZED (
    SELECT id, tenant = :tenant
               AND (:states::text[] IS NULL OR state = ANY(:states)) AND (:type::text IS NULL OR type = :type)
               AND (:created_from::timestamptz IS NULL OR created_at >= :created_from)
               AND (:created_before::timestamptz IS NULL OR created_at < :created_before)
               AND (cardinality(:quoted::text[]) = 0 OR metadata IS NOT NULL AND NOT EXISTS (
                   SELECT FROM unnest(:quoted::text[], :bare::text[]) AS n (one, other)
                   WHERE strpos(metadata, one) = 0 AND strpos(metadata, other) = 0
               )) AS fits
    FROM tasks WHERE tenant = :tenant AND key = :key AND id < :below AND id >= :start
    ORDER BY id DESC LIMIT :look
), found AS MATERIALIZED (
    SELECT id FROM looked_at WHERE fits LIMIT :most
)
SELECT ARRAY(SELECT id FROM found) AS ids,
       COALESCE((SELECT id FROM found OFFSET :most - 1 LIMIT 1),
                (SELECT id FROM looked_at OFFSET :look - 1 LIMIT 1)) AS ended;

-- name: find_by_type
-- Those of one type, by its index.
SELECT ids, ended
FROM tasks_by_type(
    :tenant, :type, :states, :created_from, :created_before, :quoted, :bare, :below, :start, :look, :most
);

-- name: find_beyond_due
-- Those that wait for nothing, of one type or of all.
SELECT ids, ended FROM tasks_beyond_due(:type, :below, :start, :most);

-- name: find_by_metadata
-- Those with a member of their metadata that is a declared key: :document has it alone.
SELECT ids, ended FROM tasks_by_metadata(:name, :document, :below, :start, :most);

-- name: find_waiting
-- Scheduled tasks, or those in Kafka (:queued).
SELECT ids, ended FROM waiting_tasks(:type, :queued, :below, :start, :look, :few, :most);

-- name: find_narrow
-- Those of another state that has a narrow table. Few run at a time; the index of the others has type and state.
WITH looked_at AS MATERIALIZED (
    (SELECT task_id AS id, :type::text IS NULL OR type = :type AS fits FROM claims
     WHERE :state::text = 'running' AND task_id < :below AND task_id >= :start ORDER BY task_id DESC LIMIT :look)
    UNION ALL
    (SELECT task_id, true FROM parked
     WHERE :type::text IS NULL AND tenant = :tenant AND state = :state::text AND task_id < :below AND task_id >= :start
     ORDER BY task_id DESC LIMIT :look)
    UNION ALL
    (SELECT task_id, true FROM parked
     WHERE type = :type::text AND tenant = :tenant AND state = :state::text AND task_id < :below AND task_id >= :start
     ORDER BY task_id DESC LIMIT :look)
), found AS MATERIALIZED (
    SELECT id FROM looked_at WHERE fits LIMIT :most
)
SELECT ARRAY(SELECT id FROM found) AS ids,
       COALESCE((SELECT id FROM found OFFSET :most - 1 LIMIT 1),
                (SELECT id FROM looked_at OFFSET :look - 1 LIMIT 1)) AS ended;

-- name: list_found
-- Of these tasks, those that fit now.
SELECT id, tenant, type, state, version, attempts, max_attempts, losses, replays, key, metadata, traceparent,
       created_at, updated_at, due_at, expires_at, result, error_class, error_reason, delivery
FROM task_states
WHERE id = ANY(:ids) AND id BETWEEN :least AND :greatest AND tenant = :tenant
  AND (:state::text IS NULL OR state = :state) AND (:type::text IS NULL OR type = :type)
  AND (:created_from::timestamptz IS NULL OR created_at >= :created_from)
  AND (:created_before::timestamptz IS NULL OR created_at < :created_before)
ORDER BY id DESC LIMIT :limit;

-- name: built_indexes
-- The indexes of `tasks` that every partition has.
SELECT c.relname::text AS name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = 'tasks'::regclass AND i.indisvalid;

-- Decisions. As everywhere: the task's row is locked first, then compared and set.

-- name: cancel
-- A waiting task will not run. Its record in Kafka, if there is one, finds a state that cannot be claimed. A claimed
-- task is left alone.
WITH locked AS (
    SELECT id FROM tasks WHERE id = :id AND tenant = :tenant AND state IN ('scheduled', 'queued') FOR NO KEY UPDATE
), free AS MATERIALIZED (
    SELECT unclaimed(ARRAY(SELECT id FROM locked)) AS ids
), cancelled AS (
    UPDATE tasks t
    SET state = 'cancelled', version = t.version + 1, claim_version = NULL, worker = NULL, updated_at = now(),
        timeline = timeline_add(t.timeline, ARRAY[
            (SELECT timeline_entry(d.published_at, 'published', 'queued', t.attempts, '') FROM due d
             WHERE d.task_id = :id AND d.dead::integer = 0 AND (d.publish_at = never()) IS TRUE
               AND t.state = 'scheduled'),
            (SELECT timeline_now()) || '|cancelled|cancelled|' || t.attempts || '|1|' || :note::text])
    WHERE t.id = ANY((SELECT ids FROM free)::uuid[]) AND t.id = :id
    RETURNING t.id
), cleared AS (
    DELETE FROM suspects s USING cancelled c WHERE s.task_id = c.id AND s.task_id = :id
)
SELECT id, withdraw_rows(ARRAY[id]) AS withdrawn FROM cancelled;

-- name: resolve
-- An uncertain task has succeeded, is due again, or is dead with a dead letter to publish. One that is to be resent has
-- an attempt left, whatever its budget was, and no expiry that has passed: the decision means that it must run. The
-- lost claim may still report while its task waits to run again; its attempt is given back, as with the policy
-- `resend`.
WITH locked AS (
    SELECT id FROM tasks
    WHERE id = :id AND (:tenant::text IS NULL OR tenant = :tenant) AND state = 'uncertain' FOR UPDATE
), resolved AS (
    UPDATE tasks t
    SET state = :state::text, version = t.version + 1, worker = NULL, updated_at = now(),
        claim_version = CASE WHEN :state = 'scheduled' THEN t.claim_version END,
        attempts = CASE WHEN :state = 'scheduled'
                        THEN LEAST(t.attempts - (t.claim_version IS NOT NULL)::integer, t.max_attempts - 1)
                        ELSE t.attempts END,
        due_at = CASE WHEN :state = 'scheduled' THEN now() ELSE t.due_at END,
        expires_at = CASE WHEN :state = 'scheduled' AND t.expires_at <= now() THEN NULL ELSE t.expires_at END,
        error_class = CASE WHEN :state <> 'succeeded' THEN t.error_class END,
        error_reason = CASE WHEN :state = 'dead' THEN COALESCE(:reason, t.error_reason)
                            WHEN :state = 'scheduled' THEN t.error_reason END,
        timeline = timeline_add(
            t.timeline,
            (SELECT timeline_now()) || '|' || :event::text || '|' || :state || '|'
            || CASE WHEN :state = 'scheduled'
                    THEN LEAST(t.attempts - (t.claim_version IS NOT NULL)::integer, t.max_attempts - 1)
                    ELSE t.attempts END
            || '|1|' || :note)
    FROM locked WHERE t.id = locked.id AND t.id = :id
    RETURNING t.id, t.type, t.state, t.version, t.expires_at
), waiting AS (
    INSERT INTO due (task_id, dead, type, version, publish_at, expires_at)
    SELECT id, state = 'dead', type, version, now(), expires_at FROM resolved WHERE state IN ('scheduled', 'dead')
    ON CONFLICT (task_id, dead) DO UPDATE
    SET version = EXCLUDED.version, publish_at = EXCLUDED.publish_at, expires_at = EXCLUDED.expires_at
)
SELECT id, type FROM resolved;

-- Types

-- name: register_type
INSERT INTO task_types (type, schema, max_attempts, ambiguous, provider, max_bytes, declared_by)
VALUES (:type, :schema, :max_attempts, :ambiguous, :provider, :max_bytes, :declared_by)
ON CONFLICT (type) DO UPDATE
SET schema = EXCLUDED.schema, max_attempts = EXCLUDED.max_attempts, ambiguous = EXCLUDED.ambiguous,
    provider = EXCLUDED.provider, max_bytes = EXCLUDED.max_bytes, declared_by = EXCLUDED.declared_by,
    off_handler = NULL, updated_at = now()
WHERE (task_types.schema, task_types.max_attempts, task_types.ambiguous, task_types.provider, task_types.max_bytes,
       task_types.declared_by, task_types.off_handler)
      IS DISTINCT FROM
      (EXCLUDED.schema, EXCLUDED.max_attempts, EXCLUDED.ambiguous, EXCLUDED.provider, EXCLUDED.max_bytes,
       EXCLUDED.declared_by, NULL)
  AND (:replaces OR task_types.schema = EXCLUDED.schema OR task_types.declared_by = EXCLUDED.declared_by
       OR task_types.declared_by IS NULL OR EXCLUDED.declared_by IS NULL);

-- name: other_declaration
-- The other function that declares a type with another schema, if there is one.
SELECT declared_by FROM task_types WHERE type = :type AND schema <> :schema AND declared_by <> :declared_by;

-- name: switch_type_off
UPDATE task_types SET off_handler = :handler, updated_at = now()
WHERE type = :type AND off_handler IS DISTINCT FROM :handler
RETURNING type;

-- name: list_types
SELECT type, schema, max_attempts, ambiguous, provider, max_bytes, off_handler FROM task_types ORDER BY type;

-- name: type_names
SELECT type FROM task_types ORDER BY type;
