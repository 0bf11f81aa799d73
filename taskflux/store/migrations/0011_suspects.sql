-- A task that ends its worker must not take its neighbours with it: losses are counted apart from attempts, and what a
-- lost worker held runs again in halving groups, with nothing beside it.

-- Workers that were lost while they held the task. Written by the sweep, in the update that frees the claim.
ALTER TABLE tasks ADD COLUMN losses integer NOT NULL DEFAULT 0;

-- An ended lease whose worker is not known to have ended in order: its claims come under suspicion.
ALTER TABLE workers ADD COLUMN lost boolean NOT NULL DEFAULT false;

-- The tasks of lost workers: narrow, inserted by the sweep and deleted by the settlement. Claims and settlements find it
-- empty while all is well. Its rows are guarded by the lock of their task's row.
CREATE TABLE suspects (
    task_id  uuid    PRIMARY KEY,
    group_id uuid    NOT NULL,
    lost     uuid    NOT NULL,              -- the worker whose loss put it into this group
    begun    integer,                       -- the version of the claim under which its group began to run alone
    alone    uuid[]  NOT NULL DEFAULT '{}'  -- workers that were lost while they ran it and nothing else
);
CREATE INDEX suspects_by_group ON suspects (group_id);
