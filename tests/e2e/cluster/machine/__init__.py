"""A whole cluster of one node on this machine, without Docker and without a registry: `make cluster`."""
