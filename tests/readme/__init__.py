"""The README's commands, run as written: `make test-readme`."""
