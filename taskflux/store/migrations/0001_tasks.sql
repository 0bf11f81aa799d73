-- The record of truth: tasks, what is due, who runs what, and what could not be done.

CREATE TABLE tasks (
    id                  uuid        NOT NULL PRIMARY KEY,  -- UUIDv7: the time it was accepted, and its partition
    tenant              text        NOT NULL DEFAULT 'default',
    type                text        NOT NULL,
    state               text        NOT NULL DEFAULT 'scheduled'
        CHECK (state IN ('scheduled', 'queued', 'running', 'succeeded', 'dead', 'uncertain', 'cancelled')),
    version             integer     NOT NULL DEFAULT 1,    -- the fence: raised by publish, claim, audit, replay
    claim_version       integer,                           -- the version of the claim that is not settled yet
    attempts            integer     NOT NULL DEFAULT 0,
    max_attempts        integer     NOT NULL,
    handbacks           integer     NOT NULL DEFAULT 0,    -- while others of the same provider succeeded
    replays             integer     NOT NULL DEFAULT 0,
    worker              uuid,
    key                 text,
    payload             text        NOT NULL,              -- JSON as it came: jsonb would refuse valid documents
    metadata            text,
    traceparent         text,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    due_at              timestamptz NOT NULL DEFAULT now(),
    expires_at          timestamptz,
    published_log       uuid,                              -- Kafka's id of the topic, which a recreated one does not share
    published_partition integer,
    published_offset    bigint,
    result              text,
    error_class         text,
    error_reason        text,
    timeline            text[]      NOT NULL DEFAULT '{}'  -- 'at|event|state|attempt|times|note', at most 32
) PARTITION BY RANGE (id);

-- No index but the primary key: an index on a column that transitions touch would make every update of a row write to
-- every index (no HOT updates).

CREATE TABLE tasks_default PARTITION OF tasks DEFAULT;

-- The least UUIDv7 of a moment.
CREATE FUNCTION uuid_floor(moment timestamptz) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (lpad(to_hex(floor(extract(epoch FROM moment) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid;

-- One partition a week, from Monday 00:00 UTC. True if it was made now. What came before its partition (nobody made any
-- for weeks, or a clock ran ahead) stands in the default one and moves: PostgreSQL would refuse the partition otherwise.
CREATE FUNCTION create_task_partition(moment timestamptz) RETURNS boolean
    LANGUAGE plpgsql AS $$
DECLARE
    first  timestamptz := date_trunc('week', moment AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';
    after  timestamptz := first + interval '7 days';
    name   text := 'tasks_' || to_char(first AT TIME ZONE 'UTC', 'IYYY"w"IW');
BEGIN
    IF to_regclass(name) IS NOT NULL THEN
        RETURN false;
    END IF;
    -- A row grows with its timeline and is updated three times at least. At 40 of 100 nine updates of ten stay in their
    -- page (at 70 every second one), and what the others leave behind would take more than the room that is kept.
    -- Whoever is about to write there waits, and looks again once the rows have moved.
    LOCK TABLE tasks_default IN ACCESS EXCLUSIVE MODE;
    EXECUTE format(
        'CREATE TABLE %I (LIKE tasks INCLUDING DEFAULTS INCLUDING CONSTRAINTS)'
        ' WITH (fillfactor = 40, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05)', name);
    EXECUTE format(
        'WITH early AS (DELETE FROM tasks_default WHERE id >= %L AND id < %L RETURNING *) INSERT INTO %I SELECT * FROM early',
        uuid_floor(first), uuid_floor(after), name);
    EXECUTE format('ALTER TABLE tasks ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                   name, uuid_floor(first), uuid_floor(after));
    RETURN true;
END $$;

SELECT create_task_partition(now() + week * interval '7 days') FROM generate_series(0, 4) AS week;

-- What is due: narrow, inserted and deleted. publish_at is when somebody must publish it; whoever is about to sets it
-- to now + grace first. `dead` rows are owed to the dead-letter topic.
CREATE TABLE due (
    task_id    uuid        NOT NULL,
    dead       boolean     NOT NULL DEFAULT false,
    type       text        NOT NULL,
    version    integer     NOT NULL,
    publish_at timestamptz NOT NULL,
    expires_at timestamptz,
    PRIMARY KEY (task_id, dead)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);
CREATE INDEX due_by_type ON due (type, publish_at) WHERE NOT dead;
CREATE INDEX due_dead ON due (publish_at) WHERE dead;
CREATE INDEX due_expiring ON due (expires_at) WHERE NOT dead AND expires_at IS NOT NULL;

-- A worker's beat is the lease of all its claims.
CREATE TABLE workers (
    id         uuid        PRIMARY KEY,
    handler    text        NOT NULL,
    label      text        NOT NULL,
    origin     text,                                      -- a supervisor that may end its own former run's leases
    pid        integer     NOT NULL,
    in_flight  integer     NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL DEFAULT now(),
    beat_at    timestamptz NOT NULL DEFAULT now(),
    ended      boolean     NOT NULL DEFAULT false
) WITH (fillfactor = 50);

-- What runs where: narrow, inserted by the claim and deleted by the settle.
CREATE TABLE claims (
    task_id uuid    PRIMARY KEY,
    worker  uuid    NOT NULL,
    type    text    NOT NULL,
    version integer NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);
CREATE INDEX claims_by_worker ON claims (worker);

CREATE TABLE idempotency_keys (
    tenant     text        NOT NULL,
    key        text        NOT NULL,
    task_id    uuid        NOT NULL,
    type       text        NOT NULL,
    digest     bytea       NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (tenant, key)
);
CREATE INDEX idempotency_keys_expiring ON idempotency_keys (expires_at);

CREATE TABLE task_types (
    type         text        PRIMARY KEY,
    schema       text        NOT NULL,
    max_attempts integer     NOT NULL,
    ambiguous    text        NOT NULL CHECK (ambiguous IN ('resend', 'hold')),
    provider     text,
    updated_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE circuits (
    provider    text        PRIMARY KEY,
    open        boolean     NOT NULL,
    error_class text,
    reason      text,
    opened_at   timestamptz,
    closed_at   timestamptz,
    probes      integer     NOT NULL DEFAULT 0,
    probe_at    timestamptz
);

CREATE TABLE dead_letters (
    id             uuid        PRIMARY KEY,
    identity       text        NOT NULL UNIQUE,           -- 'task:<id>:<version>', or a record's place in its log
    tenant         text        NOT NULL DEFAULT 'default',
    task_id        uuid,
    task_version   integer,
    type           text,
    error_class    text        NOT NULL,
    reason         text        NOT NULL,
    attempts       integer     NOT NULL DEFAULT 0,
    payload        text,
    traceparent    text,
    origin         text        NOT NULL,                  -- JSON: topic, partition, offset, timestamp
    record_key     bytea,
    record_value   bytea,
    record_headers text,                                  -- JSON: [[name, base64 of the value], …]
    created_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX dead_letters_by_time ON dead_letters (created_at, id);
CREATE INDEX dead_letters_by_task ON dead_letters (task_id) WHERE task_id IS NOT NULL;

CREATE TABLE leaders (
    name       text        PRIMARY KEY,
    holder     uuid        NOT NULL,
    origin     text,
    expires_at timestamptz NOT NULL
);

-- A full timeline keeps its first entry and its last eight; of those between, the ones alike become one with a count.
CREATE FUNCTION timeline_fold(timeline text[]) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    WITH entries AS (
        SELECT entry, place, split_part(entry, '|', 2) AS event, split_part(entry, '|', 3) AS state,
               -- A claim's note is its worker, which says where and not why.
               CASE split_part(entry, '|', 2) WHEN 'claimed' THEN '' ELSE split_part(split_part(entry, '|', 6), ':', 1) END
                   AS cause
        FROM unnest(timeline) WITH ORDINALITY AS u(entry, place)
    ), folded AS (
        SELECT max(place) AS place,
               concat_ws('|', (array_agg(split_part(entry, '|', 1) ORDER BY place))[1], event, state,
                         max(split_part(entry, '|', 4)::integer), sum(split_part(entry, '|', 5)::integer),
                         (array_agg(split_part(entry, '|', 6) ORDER BY place DESC))[1]) AS entry
        FROM entries WHERE place > 1 AND place <= cardinality(timeline) - 8
        GROUP BY event, state, cause ORDER BY 1 DESC LIMIT 22
    )
    SELECT array_agg(entry ORDER BY place) FROM (
        SELECT entry, place FROM entries WHERE place = 1 OR place > cardinality(timeline) - 8
        UNION ALL SELECT entry, place FROM folded
    ) AS kept
$$;

CREATE FUNCTION timeline_add(timeline text[], entry text) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN cardinality(timeline) < 32 THEN timeline || entry ELSE timeline_fold(timeline) || entry END;

-- The transaction's time as it stands in a timeline.
CREATE FUNCTION timeline_now() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
RETURN to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
