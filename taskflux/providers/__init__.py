"""Providers: what calls each of them, and turns its answers into `taskflux.tasks.errors`."""
