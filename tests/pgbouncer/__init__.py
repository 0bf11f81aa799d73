"""A real PgBouncer in transaction mode for the integration suite: `make test-pgbouncer`."""
