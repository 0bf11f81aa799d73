"""`python -m taskflux`, where the command is not on the path."""

from taskflux.cli import main

if __name__ == "__main__":
    main()
