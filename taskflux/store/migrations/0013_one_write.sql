-- One write of the wide row per task. docs/protocol.md has the protocol, and what each statement compares under which
-- lock.

-- All locks first, in the order in which statements name the tables: they and this do not wait for each other.
LOCK TABLE leaders IN ACCESS EXCLUSIVE MODE;
LOCK TABLE workers, tasks IN SHARE ROW EXCLUSIVE MODE;
LOCK TABLE claims, due IN ACCESS EXCLUSIVE MODE;

-- The outbox keeps the row of a published task until it is claimed. `never()` as its `publish_at` says that Kafka has
-- the record, and where. It is a time, not infinity: the release before subtracts now() from it, which PostgreSQL
-- before 17 refuses for infinity.
CREATE FUNCTION never() RETURNS timestamptz
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN timestamptz '9999-12-31 23:59:59.999999+00';

ALTER TABLE due
    ADD COLUMN published_log       uuid,
    ADD COLUMN published_partition integer,
    ADD COLUMN published_offset    bigint,
    ADD COLUMN published_at        timestamptz;

CREATE INDEX due_expiring_pending ON due (expires_at)
    WHERE NOT dead AND expires_at IS NOT NULL AND publish_at < timestamptz '9999-12-31 23:59:59.999999+00';

-- A claim says all that the settlement writes into the wide row. `attempt` NULL: the wide row says it already, since
-- the lease was ended, or a worker of the release before claimed the task.
ALTER TABLE claims
    ADD COLUMN attempt      integer,
    ADD COLUMN claimed_at   timestamptz,
    ADD COLUMN published_at timestamptz;

-- Those of these tasks that nobody has claimed, read when the caller has their locks: a statement that waited for a
-- lock sees claims as of its own start, and a claim does not change the wide row. So this must stay VOLATILE, which
-- gives its query a snapshot of its own.
--
-- Its plan is kept from when `claims` was small, and a scan of it would be the best one; later it is not.
CREATE FUNCTION unclaimed(tasks uuid[]) RETURNS uuid[]
    LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
BEGIN
    RETURN ARRAY(
        SELECT task.id FROM unnest(tasks) AS task (id)
        WHERE NOT EXISTS (SELECT FROM claims c WHERE c.task_id = task.id OFFSET 0)
    );
END $$;

-- Delete the outbox rows of these tasks, found when the caller has their locks: one may be from a transaction that it
-- waited for. How many there were.
CREATE FUNCTION withdraw(tasks uuid[]) RETURNS integer
    LANGUAGE plpgsql VOLATILE SET enable_seqscan = off AS $$
DECLARE
    withdrawn integer;
BEGIN
    DELETE FROM due WHERE task_id = ANY(tasks) AND NOT dead;
    GET DIAGNOSTICS withdrawn = ROW_COUNT;
    RETURN withdrawn;
END $$;

CREATE FUNCTION timeline_entry(at timestamptz, event text, state text, attempt integer, note text) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
RETURN to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
       || '|' || event || '|' || state || '|' || attempt || '|1|' || note;

-- A full timeline, folded to 29 entries: the first one and the last ones.
CREATE FUNCTION timeline_shorten(timeline text[]) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT folded[:1] || folded[GREATEST(2, cardinality(folded) - 27):] FROM timeline_fold(timeline) AS folded
$$;

-- Up to three entries at once; a NULL among them is none. `entries` stands here once, so that the planner can inline
-- this.
CREATE FUNCTION timeline_add(timeline text[], entries text[]) RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN cardinality(timeline) < 30 THEN timeline ELSE timeline_shorten(timeline) END
       || array_remove(entries, NULL);

-- A task as everybody sees it: its wide row, and what the narrow tables say of it while it waits or runs. The look-ups
-- find nothing at once where the wide row says it all.
CREATE VIEW task_states AS
SELECT t.id, t.tenant, t.type,
       CASE WHEN c.task_id IS NOT NULL THEN 'running' WHEN d.task_id IS NOT NULL THEN 'queued'
            ELSE t.state END AS state,
       COALESCE(c.version, t.version) AS version, COALESCE(c.attempt, t.attempts) AS attempts, t.max_attempts, t.losses,
       t.replays, t.key, t.payload, t.metadata, t.traceparent, t.created_at,
       GREATEST(t.updated_at, c.claimed_at, d.published_at) AS updated_at, t.due_at, t.expires_at, t.result,
       t.error_class, t.error_reason, t.delivery,
       CASE WHEN c.task_id IS NULL AND d.task_id IS NULL THEN t.timeline ELSE timeline_add(t.timeline, ARRAY[
           timeline_entry(COALESCE(c.published_at, d.published_at), 'published', 'queued', t.attempts, ''),
           timeline_entry(c.claimed_at, 'claimed', 'running', c.attempt,
                          COALESCE((SELECT label FROM workers w WHERE w.id = c.worker), ''))
       ]) END AS timeline
FROM tasks t
LEFT JOIN LATERAL (
    SELECT * FROM claims
    WHERE task_id = CASE WHEN t.state IN ('scheduled', 'queued') THEN t.id END AND attempt IS NOT NULL OFFSET 0
) c ON true
LEFT JOIN LATERAL (
    SELECT * FROM due
    WHERE task_id = CASE WHEN t.state = 'scheduled' AND c.task_id IS NULL THEN t.id END AND NOT dead
      AND (publish_at = never()) IS TRUE OFFSET 0
) d ON true;

-- The claims of these workers, whose leases have ended, go into their wide rows: from here on the wide row says what it
-- says of a worker of the release before, and the sweep has one form of claims to free. How many there were.
CREATE FUNCTION end_claims(of_workers uuid[]) RETURNS integer
    LANGUAGE plpgsql AS $$
DECLARE
    held      uuid[] := ARRAY(
        SELECT task_id FROM claims WHERE worker = ANY(of_workers) AND attempt IS NOT NULL ORDER BY task_id);
    versions  integer[];
    numbers   integer[];
    workers   uuid[];
    labels    text[];
    published timestamptz[];
    claimed   timestamptz[];
BEGIN
    IF cardinality(held) = 0 THEN
        RETURN 0;
    END IF;
    PERFORM FROM tasks
    WHERE id = ANY(held) AND id BETWEEN held[1] AND held[cardinality(held)] ORDER BY id FOR NO KEY UPDATE;
    -- Read again under the locks: some may be settled.
    SELECT array_agg(c.task_id ORDER BY c.task_id), array_agg(c.version ORDER BY c.task_id),
           array_agg(c.attempt ORDER BY c.task_id), array_agg(c.worker ORDER BY c.task_id),
           array_agg(COALESCE(w.label, '') ORDER BY c.task_id), array_agg(c.published_at ORDER BY c.task_id),
           array_agg(c.claimed_at ORDER BY c.task_id)
    INTO held, versions, numbers, workers, labels, published, claimed
    FROM claims c LEFT JOIN workers w ON w.id = c.worker
    WHERE c.task_id = ANY(held) AND c.worker = ANY(of_workers) AND c.attempt IS NOT NULL;
    IF held IS NULL THEN
        RETURN 0;
    END IF;
    UPDATE tasks t
    SET state = 'running', version = t.version + 1, claim_version = t.version + 1,
        attempts = numbers[width_bucket(t.id, held)], worker = workers[width_bucket(t.id, held)],
        updated_at = GREATEST(t.updated_at, claimed[width_bucket(t.id, held)]),
        timeline = timeline_add(t.timeline, ARRAY[
            timeline_entry(published[width_bucket(t.id, held)], 'published', 'queued', t.attempts, ''),
            timeline_entry(claimed[width_bucket(t.id, held)], 'claimed', 'running',
                           numbers[width_bucket(t.id, held)], labels[width_bucket(t.id, held)])])
    WHERE t.id = ANY(held) AND t.id BETWEEN held[1] AND held[cardinality(held)]
      AND t.version = versions[width_bucket(t.id, held)] - 1 AND t.state IN ('scheduled', 'queued');
    UPDATE claims SET attempt = NULL WHERE task_id = ANY(held);
    RETURN cardinality(held);
END $$;

CREATE FUNCTION end_of_lease() RETURNS trigger
    LANGUAGE plpgsql AS $$
DECLARE
    over uuid[] := ARRAY(SELECT a.id FROM leases_after a JOIN leases_before b USING (id) WHERE a.ended AND NOT b.ended);
BEGIN
    IF cardinality(over) > 0 THEN
        -- The sweep of the release before would delete a claim that commits after this. Ours does not, so that it need
        -- not wait here.
        PERFORM FROM workers
        WHERE id = ANY(over)
          AND EXISTS (SELECT FROM leaders WHERE name = 'relay' AND audits_outbox IS DISTINCT FROM holder)
        ORDER BY id FOR UPDATE;
        PERFORM end_claims(over);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER end_of_lease AFTER UPDATE ON workers
REFERENCING OLD TABLE AS leases_before NEW TABLE AS leases_after FOR EACH STATEMENT
EXECUTE FUNCTION end_of_lease();

-- A row of the outbox is updated once, and has to find room; a claim is only inserted and deleted.
ALTER TABLE due SET (fillfactor = 50);
ALTER TABLE claims SET (fillfactor = 100);

-- While the release before runs beside this one, during an upgrade or after a rollback. Its statements write the wide
-- row at each step and know no claim but `running`.

-- An update of a task that has a claim of ours is skipped, and the statement of the release before returns no row for
-- it. The conditions are those of its claim, confirm, promise (which leaves `updated_at`), cancel and expiry. The
-- others cannot meet a claim: it makes `queued` into `scheduled` and clears `claim_version`.
CREATE FUNCTION keep_claimed() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM claims c WHERE c.task_id = OLD.id AND c.attempt IS NOT NULL
        AND (NEW.state <> 'running' OR c.version <> NEW.version OR c.worker <> NEW.worker)
    ) THEN
        RETURN NULL;
    END IF;
    IF NEW.state = 'running' THEN
        DELETE FROM due WHERE task_id = OLD.id AND NOT dead;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER keep_claimed BEFORE UPDATE ON tasks FOR EACH ROW
WHEN (OLD.state IN ('scheduled', 'queued')
      AND (NEW.state IN ('running', 'cancelled')
           OR NEW.state = 'queued' AND OLD.state = 'scheduled'
           OR NEW.state = 'scheduled' AND NEW.version <> OLD.version AND NEW.updated_at = OLD.updated_at
           OR NEW.state = 'dead' AND NEW.error_reason = 'it was still waiting when its expiresAt passed'))
EXECUTE FUNCTION keep_claimed();

-- A confirmation of the release before deletes the outbox row, after which only its own auditor would find the task.
-- The new row has no expires_at: an expiry of the release before would find it, take it for stale and delete it.
CREATE FUNCTION note_confirmed() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO due (task_id, type, version, publish_at, published_log, published_partition, published_offset)
    VALUES (NEW.id, NEW.type, NEW.version, never(), NEW.published_log, NEW.published_partition, NEW.published_offset)
    ON CONFLICT (task_id, dead) DO UPDATE
    SET version = EXCLUDED.version, publish_at = EXCLUDED.publish_at, published_log = EXCLUDED.published_log,
        published_partition = EXCLUDED.published_partition, published_offset = EXCLUDED.published_offset,
        published_at = NULL, expires_at = NULL;
    RETURN NULL;
END $$;

CREATE TRIGGER note_confirmed AFTER UPDATE OF state ON tasks FOR EACH ROW
WHEN (NEW.state = 'queued' AND OLD.state = 'scheduled')
EXECUTE FUNCTION note_confirmed();

-- What was `queued` before this migration gets its outbox row from the leader, page by page: `after` is the last id
-- that was looked at. Each new leader looks through the table once: a relay of the release before that comes too late
-- may have deleted such a row as stale. A new row, since that of the leader before may be locked.
CREATE TABLE backfill_published (
    after uuid NOT NULL
);

CREATE FUNCTION begin_backfill() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR OLD.holder <> NEW.holder THEN
        INSERT INTO backfill_published VALUES ('00000000-0000-0000-0000-000000000000');
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER begin_backfill AFTER INSERT OR UPDATE ON leaders FOR EACH ROW
WHEN (NEW.name = 'relay')
EXECUTE FUNCTION begin_backfill();

-- Which leader audits the outbox. The auditor of the release before reads wide rows: while it leads, each renewal of
-- its leadership writes some published outbox rows into theirs, the next ones behind `written_back`.
ALTER TABLE leaders ADD COLUMN audits_outbox uuid, ADD COLUMN written_back uuid;

CREATE FUNCTION write_back() RETURNS trigger
    LANGUAGE plpgsql AS $$
DECLARE
    page    uuid[] := ARRAY(
        SELECT task_id FROM due
        WHERE task_id > COALESCE(NEW.written_back, '00000000-0000-0000-0000-000000000000') ORDER BY task_id LIMIT 2000);
    locked  uuid[] := ARRAY(
        SELECT id FROM tasks WHERE id = ANY(page) AND state = 'scheduled' ORDER BY id FOR NO KEY UPDATE SKIP LOCKED);
    pending record;
BEGIN
    NEW.written_back := page[cardinality(page)];
    FOR pending IN SELECT * FROM due WHERE task_id = ANY(locked) AND NOT dead AND (publish_at = never()) IS TRUE LOOP
        UPDATE tasks t
        SET state = 'queued', updated_at = now(), published_log = pending.published_log,
            published_partition = pending.published_partition, published_offset = pending.published_offset,
            timeline = timeline_add(t.timeline, ARRAY[
                timeline_entry(pending.published_at, 'published', 'queued', t.attempts, '')])
        WHERE t.id = pending.task_id AND t.version = pending.version AND t.state = 'scheduled';
    END LOOP;
    RETURN NEW;
END $$;

CREATE TRIGGER write_back BEFORE INSERT OR UPDATE ON leaders FOR EACH ROW
WHEN (NEW.audits_outbox IS DISTINCT FROM NEW.holder AND NEW.name = 'relay')
EXECUTE FUNCTION write_back();
