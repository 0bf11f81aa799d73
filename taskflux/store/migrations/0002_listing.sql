-- Lists by state and by key, and partitions that can be let go while everything runs.

-- Tasks that wait for a person or have been given up: narrow, so that they are found among any number of others.
-- `scheduled` and `running` tasks are found by `due` and `claims`; of `queued` and `succeeded` ones there is no table.
CREATE TABLE parked (
    task_id uuid PRIMARY KEY,
    tenant  text NOT NULL,
    type    text NOT NULL,
    state   text NOT NULL CHECK (state IN ('dead', 'uncertain', 'cancelled'))
);
CREATE INDEX parked_by_state ON parked (tenant, state, task_id) INCLUDE (type);

-- A trigger, not a part of every statement: while a release is rolled out, workers of the one before go on to settle,
-- and what they park must be found too. Rows of `parked` are guarded by the lock of their task's row.
CREATE FUNCTION park_task() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state IN ('dead', 'uncertain', 'cancelled') THEN
        INSERT INTO parked (task_id, tenant, type, state) VALUES (NEW.id, NEW.tenant, NEW.type, NEW.state)
        ON CONFLICT (task_id) DO UPDATE SET state = EXCLUDED.state;
    ELSE
        DELETE FROM parked WHERE task_id = NEW.id;
    END IF;
    RETURN NULL;
END $$;

-- It is made before the table is filled: nothing is parked unseen between the two. Writers wait for this migration, for
-- a few seconds for each million tasks.
CREATE TRIGGER park_task AFTER UPDATE OF state ON tasks FOR EACH ROW
WHEN (OLD.state IN ('dead', 'uncertain', 'cancelled') AND NEW.state <> OLD.state
      OR NEW.state IN ('dead', 'uncertain', 'cancelled') AND NEW.state <> OLD.state)
EXECUTE FUNCTION park_task();

INSERT INTO parked (task_id, tenant, type, state)
SELECT id, tenant, type, state FROM tasks WHERE state IN ('dead', 'uncertain', 'cancelled');

-- `key` never changes, so that updates stay HOT; a task without one costs nothing.
CREATE INDEX tasks_by_key ON tasks (tenant, key, id) WHERE key IS NOT NULL;

-- Rows that move there when their partition is let go live on: they need room for HOT updates as anywhere else.
ALTER TABLE tasks_default
    SET (fillfactor = 40, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- Whether a task may be deleted by its age: `since` is when it came to rest, the others are the moments before which a
-- task of that state may go (NULL: never).
CREATE FUNCTION past_age(state text, since timestamptz, succeeded timestamptz, dead timestamptz, cancelled timestamptz)
    RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN COALESCE(
    since < CASE state WHEN 'succeeded' THEN succeeded WHEN 'dead' THEN dead WHEN 'cancelled' THEN cancelled END, false);

-- A partition is let go in three steps, so that nothing is blocked for long and no live task is lost:
--   1. guard_task_partition: from here on the ids of rows that come or change in it are noted (a lock for an instant);
--   2. its rows are looked through at leisure, and those that must stay are remembered;
--   3. drop_task_partition: those, and all that were noted, go to tasks_default; the rest goes with the partition, in one
--      transaction that holds its locks for as long as the few rows take.
-- An id of its range can still be inserted afterwards: it belongs to tasks_default then.
CREATE TABLE touched_tasks (
    guard   text NOT NULL,
    task_id uuid NOT NULL
);

CREATE FUNCTION note_touched_task() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO touched_tasks (guard, task_id) VALUES (TG_NAME, NEW.id);
    RETURN NULL;
END $$;

-- Take away whatever guards the partition.
CREATE FUNCTION unguard_task_partition(partition text) RETURNS void
    LANGUAGE plpgsql SET lock_timeout = '500ms' AS $$
DECLARE
    old text;
BEGIN
    FOR old IN SELECT tgname FROM pg_trigger WHERE tgrelid = partition::regclass AND tgname LIKE 'guard\_%' LOOP
        EXECUTE format('DROP TRIGGER %I ON %I', old, partition);
        DELETE FROM touched_tasks WHERE guard = old;
    END LOOP;
END $$;

-- The name of the new guard; one from before is void.
CREATE FUNCTION guard_task_partition(partition text) RETURNS text
    LANGUAGE plpgsql SET lock_timeout = '1500ms' AS $$
DECLARE
    fresh text := 'guard_' || replace(gen_random_uuid()::text, '-', '');
BEGIN
    -- In nobody's way but autovacuum's, which gives way after a second: writers must not wait for that.
    EXECUTE format('LOCK TABLE ONLY %I IN SHARE UPDATE EXCLUSIVE MODE', partition);
    PERFORM set_config('lock_timeout', '500ms', true);
    PERFORM unguard_task_partition(partition);
    EXECUTE format(
        'CREATE TRIGGER %I AFTER INSERT OR UPDATE ON %I FOR EACH ROW EXECUTE FUNCTION note_touched_task()',
        fresh, partition);
    RETURN fresh;
END $$;

-- How many rows were moved. Refused, with nothing changed, unless `guarded_by` has guarded it since before it was looked
-- through.
CREATE FUNCTION drop_task_partition(partition text, guarded_by text, staying uuid[]) RETURNS integer
    LANGUAGE plpgsql SET lock_timeout = '1500ms' AS $$
DECLARE
    moved integer;
BEGIN
    EXECUTE format('LOCK TABLE ONLY %I, ONLY tasks_default IN SHARE UPDATE EXCLUSIVE MODE', partition);
    PERFORM set_config('lock_timeout', '500ms', true);
    EXECUTE format('ALTER TABLE tasks DETACH PARTITION %I', partition);
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = partition::regclass AND tgname = guarded_by) THEN
        RAISE EXCEPTION 'partition % is not guarded by %', partition, guarded_by;
    END IF;
    staying := staying || ARRAY(SELECT task_id FROM touched_tasks WHERE guard = guarded_by);
    EXECUTE format('INSERT INTO tasks SELECT * FROM %I WHERE id = ANY($1)', partition) USING staying;
    GET DIAGNOSTICS moved = ROW_COUNT;
    EXECUTE format('DROP TABLE %I', partition);
    DELETE FROM touched_tasks WHERE guard = guarded_by;
    RETURN moved;
END $$;
