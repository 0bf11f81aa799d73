-- How many bytes a payload of the type may have, as its handler declares it.
ALTER TABLE task_types ADD COLUMN max_bytes integer NOT NULL DEFAULT 1048576;
