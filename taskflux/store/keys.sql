-- Keys of the API.

-- name: create_key
-- A new key. No row: there are :most keys already that can be used.
INSERT INTO api_keys (id, prefix, hash, name, tenant, scopes, types, expires_at)
SELECT :id, :prefix, :hash, :name, :tenant, :scopes, :types, now() + make_interval(secs => :lifetime)
WHERE (SELECT count(*) FROM api_keys WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())) < :most
RETURNING id, prefix, name, tenant, scopes, types, created_at, expires_at, revoked_at, last_used_at;

-- name: list_keys
-- All keys of a tenant, or of all tenants (:tenant NULL), newest first; with :all, those too that cannot be used any more.
SELECT id, prefix, name, tenant, scopes, types, created_at, expires_at, revoked_at, last_used_at
FROM api_keys
WHERE (:tenant::text IS NULL OR tenant = :tenant)
  AND (:all OR revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()))
ORDER BY created_at DESC, id DESC;

-- name: get_key
SELECT id, prefix, name, tenant, scopes, types, created_at, expires_at, revoked_at, last_used_at
FROM api_keys WHERE prefix = :prefix;

-- name: revoke_key
-- A key that was revoked before keeps the time of that.
UPDATE api_keys SET revoked_at = now() WHERE prefix = :prefix AND revoked_at IS NULL RETURNING id;

-- name: rotate_key
-- A key in place of another, with all that it may do; the other one can be used for :overlap seconds more. No row: the
-- other one cannot be used any more.
WITH former AS (
    UPDATE api_keys
    SET expires_at = LEAST(expires_at, now() + make_interval(secs => :overlap))
    WHERE prefix = :former AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
    RETURNING name, tenant, scopes, types
)
INSERT INTO api_keys (id, prefix, hash, name, tenant, scopes, types, expires_at)
SELECT :id, :prefix, :hash, name, tenant, scopes, types, now() + make_interval(secs => :lifetime) FROM former
RETURNING id, prefix, name, tenant, scopes, types, created_at, expires_at, revoked_at, last_used_at;

-- name: access_revision
SELECT revision FROM access_revision;

-- name: usable_keys
-- All that can be used, and for how many seconds more (NULL: for ever). Without a limit: a key that takes another one's
-- place is one more for a while, and leaving out any would refuse a valid key.
SELECT prefix, hash, tenant, scopes, types, extract(epoch FROM expires_at - now())::float8 AS seconds
FROM api_keys WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now());

-- name: note_used_keys
-- By the minute: one that another process has noted within it is left as it is.
WITH used AS (
    SELECT id FROM api_keys
    WHERE prefix = ANY(:prefixes::text[]) AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE api_keys SET last_used_at = date_trunc('minute', now()) WHERE id = ANY(ARRAY(SELECT id FROM used));
