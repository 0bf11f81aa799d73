-- What others bring: delivery reports, tasks of other producers, notifications asked for by name.

-- What the provider has reported since it took the message, as JSON; NULL: nothing yet. No index: a report names its
-- task.
ALTER TABLE tasks ADD COLUMN delivery text;

-- How much a report says: nothing, taken, not delivered, delivered. Of two reports the one that says more is kept, so
-- their order does not matter.
CREATE FUNCTION delivery_rank(delivery text, replay integer) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN delivery IS NULL OR COALESCE((delivery::json ->> 'replay')::integer, 0) <> replay THEN -1
    WHEN delivery::json ->> 'status' = 'accepted' THEN 0
    WHEN delivery::json ->> 'status' = 'delivered' THEN 2
    ELSE 1
END;

-- Tasks whose report came before their outcome: it resolves them if that turns out to be unknown.
CREATE TABLE early_reports (
    task_id uuid PRIMARY KEY
);

-- Which task another producer's record has become. Rows must outlive the records of the topics they came from.
CREATE TABLE foreign_tasks (
    identity   text        PRIMARY KEY,                   -- the producer's own id, or the record's place, time and bytes
    task_id    uuid        NOT NULL,
    digest     bytea       NOT NULL,                      -- of the payload: the same id with another one is no repeat
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX foreign_tasks_by_time ON foreign_tasks (created_at);

-- Notifications that were asked for with an id: a repeat is told what became of the first.
CREATE TABLE notifications (
    id         text        PRIMARY KEY,                   -- '<channel>:<the caller's id>'
    state      text        NOT NULL CHECK (state IN ('begun', 'sent', 'failed', 'unknown')),
    version    integer     NOT NULL DEFAULT 1,            -- the fence: raised by every begin
    attempt    integer     NOT NULL,                      -- the caller's count of the one that began last
    outcome    text,                                      -- JSON, once sent
    progress   text,                                      -- JSON: what did happen, whatever became of the rest
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);
CREATE INDEX notifications_by_time ON notifications (created_at);
