"""Count the CPU cores of this process, without importing torch."""


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use, which in a container or under Slurm may be few.

    This is the number in its affinity mask, or the CPU quota of its container, rounded up, if that is smaller.
    """
    from joblib import cpu_count  # late: joblib takes 0.15 s to import, and most commands count no cores

    return int(cpu_count())
