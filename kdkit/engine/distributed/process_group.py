"""The process group of torchrun: join it, find the device of this rank, and end together with the other ranks."""

import gc
import os
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
from kdkit.utils.cores import usable_cores

_TIMEOUT = timedelta(minutes=30)  # of a collective, after which a silent rank counts as lost
_THREADS_END = 0.1  # seconds


@contextmanager
def joined() -> Iterator[None]:
    """Join the process group of torchrun, unless there is one rank or a group already; leave it at the end.

    An error propagates unchanged on the rank that raised it first, and as RemoteRankError on the others; the frames of
    its traceback lose their local variables. Raises KdkitError if another rank was lost.
    """
    if not launched() or int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield
        return
    from torch.distributed.distributed_c10d import PrefixStore  # late: torch may be built without distributed
    from torch.distributed.rendezvous import rendezvous

    if os.environ.get("OMP_NUM_THREADS", "1") == "1":  # set by torchrun, not by the user: divide the cores among ranks
        torch.set_num_threads(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    store, rank, world = next(iter(rendezvous("env://", timeout=_TIMEOUT)))
    # A program may join several times, and torchrun may restart it: each group needs keys that no other one used.
    turn = store.add(f"kdkit-{rank}", 1)
    group_store = PrefixStore(f"kdkit-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}-{turn}", store)
    # NCCL refuses ranks that share a GPU. None is torch's choice for each device.
    backend = "gloo" if 0 < torch.cuda.device_count() < int(os.environ.get("LOCAL_WORLD_SIZE", "1")) else None
    distributed.init_process_group(backend, store=group_store, rank=rank, world_size=world, timeout=_TIMEOUT)
    error_store = PrefixStore("errors", group_store)
    try:
        yield
    except Exception as error:
        # The frames of the error refer to the group, whose connections then stay open: others would wait for this rank
        # if the program handles the error.
        cause: BaseException | None = error
        while cause is not None:
            clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        if _failed_elsewhere(error_store):
            raise RemoteRankError("another process of this run failed; its error message is above") from error
        # gloo has no class for the loss of a rank, only its name in the text.
        if isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            raise KdkitError(
                f"another process of this run was lost, or did not respond for {_TIMEOUT.total_seconds() / 60:.0f} "
                f"minutes ({first_line(error)}); `torchrun --max-restarts=1 ...` with --out resumes after such a loss"
            ) from error
        raise
    finally:
        # The threads of the group release the tensors of the last message, for which they need Python's lock. Older
        # versions of torch wait for these threads while they hold the lock: without the pause they might wait forever.
        time.sleep(_THREADS_END)
        distributed.destroy_process_group()
        gc.collect()  # of modules that DistributedDataParallel has wrapped, which refer to the group


def launched() -> bool:
    """Whether torchrun started this process."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


def restarted() -> bool:
    """Whether torchrun restarted this process after one was lost."""
    return launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def rank_device(device: torch.device) -> torch.device:
    """Return the device of this rank: if there are several GPUs, the one of torchrun's LOCAL_RANK.

    More ranks than GPUs share them.
    A CUDA device has an index, as the device of a tensor has, so that the two are equal.
    """
    if collectives.is_distributed() and device.type == "mps":  # no backend of torch.distributed supports it
        return torch.device("cpu")
    if device.type == "cuda" and device.index is None:
        if collectives.is_distributed():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _failed_elsewhere(store: Any) -> bool:
    """Whether another rank raised its error before this one; notes the error of this rank as well."""
    with suppress(RuntimeError):  # the store ends with the process that holds it
        return bool(store.add("count", 1) > 1)
    return False
