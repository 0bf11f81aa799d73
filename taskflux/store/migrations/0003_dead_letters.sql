-- What became of dead letters: replayed (each once, with what came of it) or discarded, alone or by a filter.

ALTER TABLE dead_letters
    ADD COLUMN state          text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'replayed', 'discarded')),
    ADD COLUMN discarded_at   timestamptz,
    ADD COLUMN discard_reason text;

-- The topic that a letter came from; `origin` is text, so this much of it is made indexable here.
CREATE FUNCTION origin_topic(origin text) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN origin::json ->> 'topic';

-- Letters are few, inserted once and changed once: indexes cost little here.
CREATE INDEX dead_letters_open ON dead_letters (created_at, id) WHERE state = 'open';
CREATE INDEX dead_letters_by_type ON dead_letters (type, created_at, id);
CREATE INDEX dead_letters_by_class ON dead_letters (error_class, created_at, id);
CREATE INDEX dead_letters_by_topic ON dead_letters (origin_topic(origin), created_at, id);

-- A replay of every open letter that a filter finds, carried on by the leader.
CREATE TABLE bulk_replays (
    id         uuid             PRIMARY KEY,
    tenant     text             NOT NULL DEFAULT 'default',
    filter     text             NOT NULL,                  -- JSON, as the API takes it
    rate       double precision NOT NULL CHECK (rate > 0), -- tasks a second
    status     text             NOT NULL CHECK (status IN ('running', 'finished', 'stopped')),
    matched    integer          NOT NULL,                  -- open letters when it was asked for; later ones are not its
    replayed   integer          NOT NULL DEFAULT 0,
    skipped    integer          NOT NULL DEFAULT 0,        -- records that were no task, or the task has moved on
    batches    integer          NOT NULL DEFAULT 0,        -- the fence: whoever carries it compares and raises it
    cursor_at  timestamptz,                                -- the last letter that it has looked at
    cursor_id  uuid,
    paced_at   timestamptz      NOT NULL DEFAULT now(),    -- up to when its rate is used up
    created_at timestamptz      NOT NULL DEFAULT now(),
    updated_at timestamptz      NOT NULL DEFAULT now()
);
CREATE INDEX bulk_replays_running ON bulk_replays (created_at) WHERE status = 'running';

-- What was replayed when, and as what. How it ended stands on the task.
CREATE TABLE dead_letter_replays (
    letter_id   uuid        NOT NULL REFERENCES dead_letters ON DELETE CASCADE,
    task_id     uuid        NOT NULL,
    replay      integer     NOT NULL,                      -- the task's number of it; 0: a task that was made by it
    edited      boolean     NOT NULL,
    bulk_id     uuid,
    replayed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (letter_id, task_id, replay)
);
CREATE INDEX dead_letter_replays_by_bulk ON dead_letter_replays (bulk_id) WHERE bulk_id IS NOT NULL;

-- How a replay ended, or the state that its task is in. NULLs: the task was pruned. A task that was replayed again had
-- died in between.
CREATE FUNCTION replay_outcome(state text, replays integer, replay integer) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN state IS NULL THEN 'pruned' WHEN replays > replay THEN 'dead' ELSE state END;
