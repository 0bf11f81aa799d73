"""The upgrade from release 0.1 and the rollback, with the processes of both under load: `python -m tests.upgrade`."""
