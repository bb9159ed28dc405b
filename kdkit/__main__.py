"""The entry point of the command line, also as `python -m kdkit`, which ends quietly at Ctrl-C from its start on."""

import sys


def main() -> None:
    """Run the command line and exit with its exit code."""
    try:
        from kdkit.cli.main import main as run  # imports for 0.3 s, at which Ctrl-C would print a traceback

        run()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)  # as in kdkit.cli.main, which handles those of commands


if __name__ == "__main__":
    main()
