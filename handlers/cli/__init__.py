"""The `taskflux` command."""
