-- Bulk actions on dead letters are jobs: replays, with a canary and a limit of failures, and discards. Each says who
-- started it and why it was stopped.

-- `canary` and `discarding` are new: a leader of the release before does not read them, so it leaves such jobs alone.
ALTER TABLE bulk_replays
    DROP CONSTRAINT bulk_replays_status_check,
    ADD COLUMN action          text NOT NULL DEFAULT 'replay' CHECK (action IN ('replay', 'discard')),
    ADD COLUMN who             text,
    ADD COLUMN reason          text,                        -- of a discard
    ADD COLUMN canary          integer NOT NULL DEFAULT 0,  -- dead letters that are replayed first
    ADD COLUMN canary_seconds  double precision NOT NULL DEFAULT 300,
    ADD COLUMN most_failures   double precision,            -- of the last 100, as a share; NULL: no limit
    ADD COLUMN stopped_because text;

CREATE INDEX bulk_replays_active ON bulk_replays (created_at) WHERE status IN ('running', 'canary', 'discarding');
CREATE INDEX bulk_replays_listed ON bulk_replays (tenant, id);
CREATE INDEX dead_letter_replays_recent ON dead_letter_replays (bulk_id, replayed_at) WHERE bulk_id IS NOT NULL;
