-- Which function declares a type, as module:name. NULL: registered by a release before this migration.
ALTER TABLE task_types ADD COLUMN declared_by text;
