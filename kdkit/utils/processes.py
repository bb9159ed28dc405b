"""Start Python processes, and count the CPU cores that they may use. Without torch."""

import os
import subprocess
import sys
from collections.abc import Mapping


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use, which in a container or under Slurm may be few.

    This is the number in its affinity mask, or the CPU quota of its container, rounded up, if that is smaller.
    """
    from joblib import cpu_count  # late: joblib takes 0.15 s to import, and most commands count no cores

    return int(cpu_count())


def start_python(*arguments: str, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start Python in a process group of its own, with pipes to its stdin and from its stdout.

    Otherwise Ctrl-C, or a signal to the group of this process, would reach it too. variables: of its environment, in
    addition to those of this process.
    """
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **variables},
        process_group=0,  # ignored on Windows, which has the next option
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
