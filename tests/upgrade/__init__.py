"""Upgrade from the release before and roll back, with processes of both under load: `python -m tests.upgrade`."""
