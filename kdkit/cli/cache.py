"""The command `kdkit cache`."""

import math
from pathlib import Path

import click

from kdkit.cli.options import PATH
from kdkit.errors import KdkitError


@click.command(short_help="List or delete cached teacher outputs.")
@click.argument("folder", required=False, default="runs/teacher_cache", type=PATH)
@click.option(
    "--delete", metavar="NAME|all", help="Delete the entries of net NAME, entries whose names begin with NAME, or all."
)
@click.option(
    "--keep",
    type=click.FloatRange(min=0),
    metavar="GB",
    help="Delete the least recently used entries until at most GB are left.",
)
def cache(folder: Path, delete: str | None, keep: float | None) -> None:
    """List the cached teacher outputs in FOLDER, or delete some of them.

        kdkit cache
        kdkit cache --keep 5

    FOLDER is runs/teacher_cache by default.
    """
    from kdkit.cli.cache_table import show_cache
    from kdkit.teachers.cache import CacheFolder
    from kdkit.utils.console import make_console

    cache_folder = CacheFolder(folder)
    deleted = cache_folder.delete(delete) if delete is not None else []
    if keep is not None:
        if not math.isfinite(keep):
            raise KdkitError(f"--keep must be a number of gigabytes; got {keep}")
        deleted += cache_folder.shrink(int(keep * 10**9))
    show_cache(make_console(), folder, cache_folder.kept(), deleted)
