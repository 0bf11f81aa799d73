-- Lists that stay fast however many tasks there are. Columns of an index on `tasks` never change, so updates stay HOT.

-- This step takes an instant: `taskflux migrate` builds the index of each partition afterwards (`next_index_step`),
-- without blocking writers. Until it is complete, and so valid, lists by type read the primary key.
CREATE INDEX tasks_by_type ON ONLY tasks (type, id);

-- Held and dead tasks of one type among any number of others. Those that become held or dead wait for about a second
-- for each million rows.
CREATE INDEX parked_by_type ON parked (tenant, state, type, task_id);

-- A hash of a top-level member of the metadata, as a filter writes it: a number by its digits, a text without quotes.
-- NULL where there is no such member, or no valid JSON. Escapes of characters stay as they are, for not all of them are
-- characters.
CREATE FUNCTION metadata_hash(metadata text, name text) RETURNS bigint
    LANGUAGE plpgsql IMMUTABLE STRICT AS $$
DECLARE
    member json;
BEGIN
    member := replace(metadata, '\u', '/u')::json -> name;
    RETURN hashtextextended(COALESCE(member #>> '{}', member::text), 0);
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END $$;

-- The newest tasks with this member in their metadata, at most :look with ids from `start` on and below `below`, by the
-- index of a declared key. A task may be among them that has another value of the same hash.
CREATE FUNCTION tasks_by_metadata(name text, value bigint, below uuid, start uuid, look integer) RETURNS SETOF uuid
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT id FROM tasks WHERE strpos(metadata, %2$L) > 0 AND id < $2 AND id >= $3'
        ' AND (metadata_hash(metadata, %1$L), id) < ($1, $2) AND (metadata_hash(metadata, %1$L), id) >= ($1, $3)'
        ' ORDER BY metadata_hash(metadata, %1$L) DESC, id DESC LIMIT $4', name, '"' || name || '":')
    USING value, below, start, look;
END $$;

-- The next statement that completes the indexes of `tasks`: for each of the metadata `keys` one, and each of them on
-- every partition. NULL once nothing is missing. It is asked again after each statement, and after a failure.
CREATE FUNCTION next_index_step(keys text[]) RETURNS text
    LANGUAGE sql STABLE AS $$
    WITH wanted AS (
        SELECT key, 'tasks_by_metadata_' || key AS name FROM unnest(keys) AS key
    ), incomplete AS (
        SELECT i.indexrelid AS parent, c.relname AS name, regexp_replace(pg_get_indexdef(i.indexrelid), '.* USING ', '') AS columns
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid = 'tasks'::regclass AND NOT i.indisvalid
    ), parts AS (
        SELECT p.parent, p.name, p.columns, t.oid AS partition, t.relname || substr(p.name, 6) AS part
        FROM incomplete p
        CROSS JOIN (SELECT c.oid, c.relname FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid
                    WHERE h.inhparent = 'tasks'::regclass) AS t
        WHERE NOT EXISTS (SELECT FROM pg_inherits h JOIN pg_index i ON i.indexrelid = h.inhrelid
                          WHERE h.inhparent = p.parent AND i.indrelid = t.oid)
    ), missing AS (
        SELECT p.*, (SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
                     WHERE i.indrelid = p.partition AND c.relname = p.part) AS valid
        FROM parts p
    )
    SELECT step FROM (
        SELECT name, format('CREATE INDEX %I ON ONLY tasks (metadata_hash(metadata, %L), id) WHERE strpos(metadata, %L) > 0',
                            name, key, '"' || key || '":') AS step
        FROM wanted
        WHERE NOT EXISTS (SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
                          WHERE i.indrelid = 'tasks'::regclass AND c.relname = wanted.name)
        UNION ALL
        SELECT part, CASE
            WHEN valid IS NULL THEN format('CREATE INDEX CONCURRENTLY %I ON %s USING %s', part, partition::regclass, columns)
            WHEN valid THEN format('ALTER INDEX %I ATTACH PARTITION %I', name, part)
            ELSE format('DROP INDEX %I', part)
        END FROM missing
    ) AS steps ORDER BY name LIMIT 1
$$;
