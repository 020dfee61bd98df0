"""`python -m tinyvit` is the `tinyvit` command."""

from .cli import main

main()
