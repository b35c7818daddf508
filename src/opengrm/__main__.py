"""`python -m opengrm`."""

from opengrm.cli import main

main()
