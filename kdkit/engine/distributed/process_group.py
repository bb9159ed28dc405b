"""Join the process group of torchrun, find the device of this rank, and end together with the other ranks."""

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from traceback import clear_frames
from typing import Any

import torch
from torch import distributed

from kdkit.errors import KdkitError, RemoteRankError, first_line
from kdkit.utils import collectives
from kdkit.utils.processes import usable_cores

_TIMEOUT = timedelta(minutes=30)  # of a collective; afterwards a rank that does not respond counts as lost
_CONNECTING = timedelta(minutes=1)  # to the store of torchrun's agent, which runs before its processes
_THREADS_END = 0.1  # seconds


@contextmanager
def joined() -> Iterator[None]:
    """Join the process group of torchrun, and leave it at the end. Does nothing for one rank, or if there is a group.

    The first error propagates unchanged on its rank, and as RemoteRankError on the others; the frames of its traceback
    lose their local variables. Raises KdkitError if another rank was lost. If torchrun itself is killed, this process
    gets SIGTERM: nothing else would end it, and it would keep the run folder and its GPU.
    """
    if not launched() or int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield
        return
    with _ended_with_launcher(), _process_group():
        yield


@contextmanager
def _process_group() -> Iterator[None]:
    from torch.distributed.distributed_c10d import PrefixStore  # late: torch may be built without distributed
    from torch.distributed.rendezvous import rendezvous

    if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # set by torchrun, not by the user: divide the cores among ranks
        torch.set_num_threads(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store, rank, world = next(iter(rendezvous("env://", timeout=_CONNECTING if has_store else _TIMEOUT)))
    store.set_timeout(_TIMEOUT)
    # A program may join several times, and torchrun may restart it: each group needs keys that no other group used.
    turn = store.add(f"kdkit-{rank}", 1)
    group_store = PrefixStore(f"kdkit-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}-{turn}", store)
    # NCCL does not support ranks that share a GPU. With None, torch chooses a backend for each device.
    backend = "gloo" if 0 < torch.cuda.device_count() < int(os.environ.get("LOCAL_WORLD_SIZE", "1")) else None
    distributed.init_process_group(backend, store=group_store, rank=rank, world_size=world, timeout=_TIMEOUT)
    error_store = PrefixStore("errors", group_store)
    try:
        yield
    except Exception as error:
        # The frames of the error refer to the group and would keep its connections open: if the program handles the
        # error, other ranks would wait for this one.
        cause: BaseException | None = error
        while cause is not None:
            clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        if _failed_elsewhere(error_store):
            raise RemoteRankError("another process of this run failed; its error message is above") from error
        # gloo has no exception class for a lost rank; only the message names it.
        if isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            raise KdkitError(
                f"another process of this run was lost, or did not respond for {_TIMEOUT.total_seconds() / 60:.0f} "
                f"minutes ({first_line(error)}); `torchrun --max-restarts=1 ...` with --out resumes the run after that"
            ) from error
        raise
    finally:
        # The threads of the group need Python's lock to release the tensors of the last message. Older versions of
        # torch hold the lock while they wait for these threads, so that without the pause they may wait forever.
        time.sleep(_THREADS_END)
        distributed.destroy_process_group()
        gc.collect()  # modules that DistributedDataParallel wrapped refer to the group


@contextmanager
def _ended_with_launcher() -> Iterator[None]:
    """Send SIGTERM to this process if its parent ends in this context."""
    launcher, left = os.getppid(), threading.Event()

    def watch() -> None:
        while not left.wait(1.0):
            if os.getppid() != launcher:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, name="kdkit-launcher", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


def launched() -> bool:
    """Whether torchrun started this process."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


def restarted() -> bool:
    """Whether torchrun restarted this process after one was lost."""
    return launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def rank_device(device: torch.device) -> torch.device:
    """Return the device of this rank: if there are several GPUs, the one of torchrun's LOCAL_RANK.

    If there are more ranks than GPUs, ranks share them.
    A CUDA device has an index, so that it equals the device of a tensor.
    """
    if collectives.is_distributed() and device.type == "mps":  # no backend of torch.distributed supports it
        return torch.device("cpu")
    if device.type == "cuda" and device.index is None:
        if collectives.is_distributed():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _failed_elsewhere(store: Any) -> bool:
    """Whether another rank raised an error before this one. Also records the error of this rank."""
    with suppress(RuntimeError):  # the store ends with the process that hosts it
        return bool(store.add("count", 1) > 1)
    return False
