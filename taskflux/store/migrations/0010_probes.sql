-- How many tasks the next probe of a circuit is, and when a task that was served last closed it.
ALTER TABLE circuits ADD COLUMN breadth integer NOT NULL DEFAULT 1, ADD COLUMN served_at timestamptz;
