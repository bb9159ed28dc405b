"""`python -m kdkit` is `kdkit`."""

from kdkit.cli.main import main

main()
