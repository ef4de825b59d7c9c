"""`python -m vit21k`."""

from vit21k.cli.app import main

main()
