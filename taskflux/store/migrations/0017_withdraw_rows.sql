-- `withdraw`, which the release before calls, keeps a plan that was made while `due` was empty: it may read the whole of
-- a partial index in place of the primary key. `dead` as an integer implies no partial index.

-- Delete the outbox rows of these tasks, found when the caller has their locks: one may be from a transaction that it
-- waited for. How many there were.
CREATE FUNCTION withdraw_rows(tasks uuid[]) RETURNS integer
    LANGUAGE plpgsql VOLATILE SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    withdrawn integer;
BEGIN
    DELETE FROM due WHERE task_id = ANY(tasks) AND dead::integer = 0;
    GET DIAGNOSTICS withdrawn = ROW_COUNT;
    RETURN withdrawn;
END $$;
