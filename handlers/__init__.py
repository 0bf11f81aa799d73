"""The deployments of TaskFlux, one small module each; installed as `taskflux.handlers`."""
