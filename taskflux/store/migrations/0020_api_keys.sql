-- Keys of the API. `prefix` is public: it names the key, and finds it. `hash` is the SHA-256 of the whole key.
CREATE TABLE api_keys (
    id           uuid PRIMARY KEY,
    prefix       text NOT NULL UNIQUE,
    hash         bytea NOT NULL,
    name         text NOT NULL,
    tenant       text NOT NULL,
    scopes       text[] NOT NULL,
    types        text[],               -- NULL: all task types
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz
) WITH (fillfactor = 70);

-- One row: how often keys have changed. Its lock makes the changes one after the other, so whoever has read a number and
-- the keys after it knows all changes up to that number.
CREATE TABLE access_revision (
    revision bigint NOT NULL
);
INSERT INTO access_revision VALUES (1);

CREATE FUNCTION note_access_change() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    UPDATE access_revision SET revision = revision + 1;
    RETURN NULL;
END $$;

-- Not when a key is used: last_used_at is not among these.
CREATE TRIGGER note_access_change
AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF prefix, hash, tenant, scopes, types, expires_at, revoked_at ON api_keys
FOR EACH STATEMENT EXECUTE FUNCTION note_access_change();
