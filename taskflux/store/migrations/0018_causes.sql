-- Dead letters by cause: a short fingerprint of error class and message (taskflux/tasks/causes.py), kept with each dead
-- letter and each held or dead task, and counted where the writes happen. NULL: from before, or from a process of the
-- release before. The leader computes those, batch by batch.

LOCK TABLE tasks, dead_letters, parked IN SHARE ROW EXCLUSIVE MODE;

ALTER TABLE dead_letters ADD COLUMN cause text;
ALTER TABLE parked ADD COLUMN cause text;

-- Dead letters and their readers wait for about three seconds for each million of them.
CREATE INDEX dead_letters_by_cause ON dead_letters (cause, created_at, id);
CREATE INDEX dead_letters_by_cause_and_state ON dead_letters (cause, state, created_at, id);
CREATE INDEX dead_letters_without_cause ON dead_letters (id) WHERE cause IS NULL;
CREATE INDEX parked_without_cause ON parked (task_id) WHERE cause IS NULL AND state IN ('dead', 'uncertain');

-- How many dead letters there are, by all that their groups are filtered by: in all (`hour` is '-infinity'), and of the
-- last two days by the hour in which they were stored. No type, or no cause yet, is ''.
CREATE TABLE dead_letter_counts (
    tenant      text        NOT NULL,
    state       text        NOT NULL,
    hour        timestamptz NOT NULL,
    cause       text        NOT NULL,
    type        text        NOT NULL,
    error_class text        NOT NULL,
    letters     integer     NOT NULL,
    PRIMARY KEY (tenant, state, hour, cause, type, error_class)
) WITH (fillfactor = 50);

CREATE TYPE dead_letter_change AS (
    tenant text, state text, cause text, type text, error_class text, hour timestamptz, letters bigint
);

-- Rows are locked last, and in one order, so that no two statements wait for each other.
CREATE FUNCTION count_letters(changes dead_letter_change[]) RETURNS void
    LANGUAGE sql AS $$
    INSERT INTO dead_letter_counts AS c (tenant, state, hour, cause, type, error_class, letters)
    SELECT tenant, state, span.hour, COALESCE(cause, ''), COALESCE(type, ''), error_class, sum(letters)
    FROM unnest(changes) AS change CROSS JOIN LATERAL (VALUES (timestamptz '-infinity'), (change.hour)) AS span (hour)
    WHERE span.hour = '-infinity' OR span.hour > now() - interval '2 days'
    GROUP BY 1, 2, 3, 4, 5, 6 HAVING sum(letters) <> 0 ORDER BY 1, 2, 3, 4, 5, 6
    ON CONFLICT (tenant, state, hour, cause, type, error_class) DO UPDATE SET letters = c.letters + EXCLUDED.letters
$$;

CREATE FUNCTION count_dead_letters() RETURNS trigger
    LANGUAGE plpgsql AS $$
DECLARE
    added   dead_letter_change[] := '{}';
    removed dead_letter_change[] := '{}';
BEGIN
    IF TG_OP <> 'DELETE' THEN
        added := ARRAY(
            SELECT (tenant, state, cause, type, error_class, date_trunc('hour', created_at, 'UTC'), count(*))
                   ::dead_letter_change
            FROM letters_after
            GROUP BY tenant, state, cause, type, error_class, date_trunc('hour', created_at, 'UTC'));
    END IF;
    IF TG_OP <> 'INSERT' THEN
        removed := ARRAY(
            SELECT (tenant, state, cause, type, error_class, date_trunc('hour', created_at, 'UTC'), -count(*))
                   ::dead_letter_change
            FROM letters_before
            GROUP BY tenant, state, cause, type, error_class, date_trunc('hour', created_at, 'UTC'));
    END IF;
    PERFORM count_letters(added || removed);
    RETURN NULL;
END $$;

CREATE TRIGGER count_dead_letters_added AFTER INSERT ON dead_letters
REFERENCING NEW TABLE AS letters_after FOR EACH STATEMENT EXECUTE FUNCTION count_dead_letters();
CREATE TRIGGER count_dead_letters_changed AFTER UPDATE ON dead_letters
REFERENCING OLD TABLE AS letters_before NEW TABLE AS letters_after FOR EACH STATEMENT
EXECUTE FUNCTION count_dead_letters();
CREATE TRIGGER count_dead_letters_deleted AFTER DELETE ON dead_letters
REFERENCING OLD TABLE AS letters_before FOR EACH STATEMENT EXECUTE FUNCTION count_dead_letters();

SELECT count_letters(ARRAY(
    SELECT (tenant, state, cause, type, error_class, date_trunc('hour', created_at, 'UTC'), count(*))::dead_letter_change
    FROM dead_letters GROUP BY tenant, state, cause, type, error_class, date_trunc('hour', created_at, 'UTC')));

-- Which image of a handler came after which: a row where a worker starts with another one than the last.
CREATE TABLE handler_images (
    type  text        NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    image text        NOT NULL,
    PRIMARY KEY (type, since)
);
