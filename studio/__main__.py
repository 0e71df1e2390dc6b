"""`python -m studio`: the command line, see `studio/cli/main.py`."""

from studio.cli.main import main

main()
