"""PostgreSQL, the record of truth, and Redis, the accelerator that everything works without."""
