"""The commands of README.md and docs/, run as written: `make test-readme`."""
