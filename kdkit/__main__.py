"""`python -m kdkit` is `kdkit`."""

from kdkit.cli import main

main()
