"""The outside world: each module here speaks to one provider and turns its answers into `taskflux.tasks.errors`."""
