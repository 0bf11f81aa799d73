"""The embedded stack behind `taskflux dev`: real servers out of wheels, an inbox, and the handlers, supervised."""
