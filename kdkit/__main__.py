"""Run the command line with `python -m kdkit`."""

from kdkit.cli.main import main

main()
