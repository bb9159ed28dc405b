"""Start Python processes that receive no signals from a terminal or a scheduler."""

import os
import subprocess
import sys
from collections.abc import Mapping


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
