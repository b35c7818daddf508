"""`python -m opengrm`."""

from opengrm.cli.main import main

main()
