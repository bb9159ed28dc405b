"""Run scripts in two processes at once."""

import subprocess
import sys

from torch.distributed import TCPStore

from tests.helpers.command_line import environment
from tests.helpers.processes import ForkedPython


def in_two_processes(script, folder):
    """Run a script in two processes at once; its arguments are the number of the process and the folder."""
    (folder / "script.py").write_text(script)
    ranks = [ForkedPython(["script.py", str(rank), str(folder)], folder) for rank in range(2)]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert not any(rank.returncode for rank in ranks), "".join(errors)
    assert "find_unused_parameters" not in "".join(errors)  # DistributedDataParallel advises against what is needed


def run_two_ranks(folder, *arguments, fresh=False):
    """Run Python with these arguments in two processes, as torchrun does, and return exit codes, stdout and stderr.

    fresh: use two new interpreters, which also end as interpreters do.
    """
    # As in torchrun, the store does not end with a rank: the last one still finds out that another one failed first.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = variables_of_torchrun(store)
    start = _fresh_python if fresh else ForkedPython
    ranks = [start([*arguments], folder, environment(**variables, RANK=str(r), LOCAL_RANK=str(r))) for r in range(2)]
    outputs = [rank.communicate(timeout=120) for rank in ranks]
    return [rank.returncode for rank in ranks], "".join(out for out, _ in outputs), "".join(err for _, err in outputs)


def variables_of_torchrun(store):
    """Return the environment variables that torchrun sets for two processes, except for their numbers."""
    variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    return {**variables, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "test"}


def _fresh_python(arguments, folder, variables):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *arguments], cwd=folder, env=variables, text=True, **pipes)
