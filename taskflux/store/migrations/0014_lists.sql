-- Lists, and the relay's look at the outbox, stay fast however many tasks there are. Columns of an index on `tasks`
-- never change, so updates stay HOT.

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

-- Lists: tasks.sql says what each argument and result means. The planner knows too little of a type, or of a value, to
-- choose among indexes: it would read another one, or sort all that an index has in its order. So a plan that does
-- either is not allowed in these functions.

CREATE FUNCTION tasks_by_type(
    of_tenant text, of_type text, states text[], created_from timestamptz, created_before timestamptz,
    quoted text[], bare text[], below uuid, start uuid, look integer, most integer, OUT ids uuid[], OUT ended uuid
) LANGUAGE plpgsql STABLE SET enable_sort = off SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
    WITH looked_at AS MATERIALIZED (
        SELECT id, tenant = of_tenant AND (states IS NULL OR state = ANY(states))
                   AND (created_from IS NULL OR created_at >= created_from)
                   AND (created_before IS NULL OR created_at < created_before)
                   AND (cardinality(quoted) = 0 OR metadata IS NOT NULL AND NOT EXISTS (
                       SELECT FROM unnest(quoted, bare) AS n (one, other)
                       WHERE strpos(metadata, one) = 0 AND strpos(metadata, other) = 0
                   )) AS fits
        FROM tasks WHERE (type, id) < (of_type, below) AND (type, id) >= (of_type, start)
        ORDER BY type DESC, id DESC LIMIT look
    ), found AS MATERIALIZED (
        SELECT id FROM looked_at WHERE fits LIMIT most
    )
    SELECT ARRAY(SELECT id FROM found),
           COALESCE((SELECT id FROM found OFFSET most - 1 LIMIT 1),
                    (SELECT id FROM looked_at OFFSET look - 1 LIMIT 1))
    INTO ids, ended;
END $$;

-- The newest ones without an outbox row, of one type or of all: by indexes alone where vacuum was, since a million may
-- wait that are newer. Of all types, the outbox is passed in blocks: as many tasks as rows, and no task is without one.
-- A task that has ended although an outbox row is left (docs/protocol.md, races) is found once that row is dropped.
CREATE FUNCTION tasks_beyond_due(
    of_type text, below uuid, start uuid, most integer, OUT ids uuid[], OUT ended uuid
) LANGUAGE plpgsql STABLE SET enable_sort = off SET enable_seqscan = off SET enable_bitmapscan = off
  SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $$
DECLARE
    block CONSTANT integer := 5000;
    edge  uuid;
BEGIN
    IF of_type IS NOT NULL THEN
        ids := ARRAY(
            SELECT t.id FROM tasks t LEFT JOIN due d ON d.task_id = t.id
            WHERE t.type = of_type AND t.id < below AND t.id >= start AND d.task_id IS NULL
            ORDER BY t.id DESC LIMIT most);
        ended := ids[most];
        RETURN;
    END IF;
    LOOP
        edge := (SELECT task_id FROM due WHERE task_id < below AND task_id >= start AND NOT dead
                 ORDER BY task_id DESC OFFSET block - 1 LIMIT 1);
        EXIT WHEN edge IS NULL OR block < (
            SELECT count(*) FROM (SELECT FROM tasks WHERE id < below AND id >= edge LIMIT block + 1) AS others);
        below := edge;
    END LOOP;
    ids := ARRAY(
        SELECT t.id FROM tasks t LEFT JOIN due d ON d.task_id = t.id
        WHERE t.id < below AND t.id >= start AND d.task_id IS NULL ORDER BY t.id DESC LIMIT most);
    ended := ids[most];
END $$;

-- Those with this member in their metadata, by the index of a declared key; some may have another value of the same
-- hash.
CREATE FUNCTION tasks_by_metadata(
    name text, document text, below uuid, start uuid, most integer, OUT ids uuid[], OUT ended uuid
) LANGUAGE plpgsql STABLE SET enable_sort = off SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
BEGIN
    EXECUTE format(
        'SELECT ARRAY(SELECT id FROM tasks WHERE strpos(metadata, %2$L) > 0'
        ' AND (metadata_hash(metadata, %1$L), id) < ($1, $2) AND (metadata_hash(metadata, %1$L), id) >= ($1, $3)'
        ' ORDER BY metadata_hash(metadata, %1$L) DESC, id DESC LIMIT $4)', name, '"' || name || '":')
    INTO ids USING metadata_hash(document, name), below, start, most;
    ended := ids[most];
END $$;

-- Those that wait in the outbox: scheduled ones, or those in Kafka (`published`). If they are fewer than `few`, an
-- index has them all; if not, they are found soon among all that wait.
CREATE FUNCTION waiting_tasks(
    of_type text, published boolean, below uuid, start uuid, look integer, few integer, most integer,
    OUT ids uuid[], OUT ended uuid
) LANGUAGE plpgsql STABLE SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
DECLARE
    first timestamptz := CASE WHEN published THEN never() ELSE '-infinity' END;
    after timestamptz := CASE WHEN published THEN 'infinity' ELSE never() END;
    kind  text := COALESCE(of_type, (SELECT type FROM due WHERE NOT dead ORDER BY type LIMIT 1));
    found uuid[] := '{}';
BEGIN
    WHILE kind IS NOT NULL AND cardinality(found) < few LOOP
        found := found || ARRAY(
            SELECT task_id FROM due
            WHERE type = kind AND NOT dead AND publish_at >= first AND publish_at < after LIMIT few);
        kind := CASE WHEN of_type IS NULL
                THEN (SELECT type FROM due WHERE NOT dead AND type > kind ORDER BY type LIMIT 1) END;
    END LOOP;
    IF cardinality(found) < few THEN
        ids := ARRAY(SELECT id FROM unnest(found) AS id WHERE id < below AND id >= start ORDER BY id DESC LIMIT most);
        ended := ids[most];
        RETURN;
    END IF;
    WITH looked_at AS MATERIALIZED (
        SELECT task_id AS id,
               NOT dead AND (publish_at = never()) = published AND (of_type IS NULL OR type = of_type) AS fits
        FROM due WHERE task_id < below AND task_id >= start ORDER BY task_id DESC LIMIT look
    ), fitting AS MATERIALIZED (
        SELECT id FROM looked_at WHERE fits LIMIT most
    )
    SELECT ARRAY(SELECT id FROM fitting),
           COALESCE((SELECT id FROM fitting OFFSET most - 1 LIMIT 1),
                    (SELECT id FROM looked_at OFFSET look - 1 LIMIT 1))
    INTO ids, ended;
END $$;

-- The next statement that completes the indexes of `tasks`: for each of the metadata `keys` one, and each of them on
-- every partition. NULL once nothing is missing. It is asked again after each statement, and after a failure.
CREATE FUNCTION next_index_step(keys text[]) RETURNS text
    LANGUAGE sql STABLE AS $$
    WITH wanted AS (
        SELECT key, 'tasks_by_metadata_' || key AS name FROM unnest(keys) AS key
    ), incomplete AS (
        SELECT i.indexrelid AS parent, c.relname AS name,
               regexp_replace(pg_get_indexdef(i.indexrelid), '^.*? USING ', '') AS columns
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
        SELECT name, format('CREATE INDEX %I ON ONLY tasks (metadata_hash(metadata, %L), id)'
                            ' WHERE strpos(metadata, %L) > 0', name, key, '"' || key || '":') AS step
        FROM wanted
        WHERE NOT EXISTS (SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
                          WHERE i.indrelid = 'tasks'::regclass AND c.relname = wanted.name)
        UNION ALL
        SELECT part, CASE
            WHEN valid IS NULL
            THEN format('CREATE INDEX CONCURRENTLY %I ON %s USING %s', part, partition::regclass, columns)
            WHEN valid THEN format('ALTER INDEX %I ATTACH PARTITION %I', name, part)
            ELSE format('DROP INDEX %I', part)
        END FROM missing
    ) AS steps ORDER BY name LIMIT 1
$$;

-- Seconds until the next outbox row of each type is due, if within `within` seconds; dead letters have the type NULL.
-- The plan is kept from when `due` was empty, and a scan of it would be the best one; later it is not.
CREATE FUNCTION next_due(within double precision) RETURNS TABLE (type text, wait double precision)
    LANGUAGE plpgsql STABLE
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
BEGIN
    RETURN QUERY
    SELECT tt.type, extract(epoch FROM d.publish_at - now())::double precision
    FROM task_types tt CROSS JOIN LATERAL (
        SELECT publish_at FROM due
        WHERE due.type = tt.type AND NOT dead AND publish_at <= now() + make_interval(secs => within)
        ORDER BY publish_at LIMIT 1
    ) AS d
    UNION ALL
    (SELECT NULL, extract(epoch FROM publish_at - now())::double precision FROM due
     WHERE dead AND publish_at <= now() + make_interval(secs => within) ORDER BY publish_at LIMIT 1);
END $$;
