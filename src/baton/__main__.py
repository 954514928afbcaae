"""`python -m baton`: the command line, where `baton` is not on PATH."""

from baton.cli import main

main()
