-- A beat is a count. How long a worker has been silent is measured by the leader's own clock, never by two of ours.
ALTER TABLE workers ADD COLUMN beat bigint NOT NULL DEFAULT 0;

-- Workers of the release before set beat_at alone: that counts, too.
CREATE FUNCTION count_beat() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    NEW.beat := OLD.beat + 1;
    RETURN NEW;
END $$;

CREATE TRIGGER count_beat BEFORE UPDATE OF beat_at ON workers FOR EACH ROW
WHEN (NEW.beat = OLD.beat)
EXECUTE FUNCTION count_beat();
