-- The handler of a type, while it is switched off: new tasks of the type are refused in its name. NULL: the type is accepted.
ALTER TABLE task_types ADD COLUMN off_handler text;
