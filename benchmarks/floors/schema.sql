-- What a bare program would keep of a task.
CREATE TABLE floor_tasks (
    id         uuid        PRIMARY KEY,
    type       text        NOT NULL,
    payload    text        NOT NULL,
    state      text        NOT NULL DEFAULT 'accepted',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    result     text
);
