"""Long drills against `taskflux dev` as a person runs it: `python -m tests.drills --help`."""
