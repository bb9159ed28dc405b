"""Count the CPU cores of this process, without an import of torch."""


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use, which in a container or under Slurm may be few.

    That is the number in its affinity mask, or fewer if its container has a CPU quota, which is rounded up.
    """
    from joblib import cpu_count  # late: joblib takes 0.15 s to import, and most commands count no cores

    return int(cpu_count())
