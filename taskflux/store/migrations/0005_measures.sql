-- What the leader measures for all stays cheap, whatever lies in the tables.

-- The type whose tasks a worker takes. NULL: a worker of the release before this one.
ALTER TABLE workers ADD COLUMN type text;

-- Open dead letters by class, counted without a look at the letters themselves.
CREATE INDEX dead_letters_open_by_class ON dead_letters (error_class) WHERE state = 'open';
