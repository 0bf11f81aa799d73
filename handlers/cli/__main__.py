"""`python -m handlers.cli`, where the command is not on the path."""

from handlers.cli import main

main()
