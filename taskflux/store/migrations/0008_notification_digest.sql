-- What a notification's id stands for: SHA-256 of its payload. NULL: requested before this migration, of whatever payload.
ALTER TABLE notifications ADD COLUMN digest bytea;
