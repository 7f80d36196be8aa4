"""`python -m mqc`."""

from mqc.cli import main

main()
