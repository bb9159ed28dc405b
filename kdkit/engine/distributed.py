"""Run as one of several processes that torchrun started: join them, share out the work, and end together."""

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from kdkit.data.dataset import Data, LoaderSplit, optional_member
from kdkit.errors import DataError, KdkitError, RecipeError, RemoteRankError, first_line
from kdkit.utils import collectives
from kdkit.utils.devices import usable_cores

_PATIENCE = timedelta(minutes=30)  # how long a process waits for another that says nothing
_LETTING_GO = 0.1  # seconds
_ALWAYS_USED = "find_unused_parameters=True was specified in DDP constructor, but did not find any unused parameters"
_OLD_NAME = "`broadcast_buffers` is deprecated"  # since torch 2.14; what replaces it is not in torch 2.7
_NOTHING = nullcontext()


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes of torchrun, if it started several and no group is there yet; leave them at the end.

    An error leaves as it is in the process that had it first, and as SaidElsewhereError in the others. Raises
    KdkitError where another process was lost.
    """
    if not launched() or int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield
        return
    from torch.distributed.distributed_c10d import PrefixStore  # late: a torch may be built without
    from torch.distributed.rendezvous import rendezvous

    _share_cores()
    store, rank, world = next(iter(rendezvous("env://", timeout=_PATIENCE)))
    turn = store.add(f"kdkit-{rank}", 1)  # a program may join several times, each with words of its own
    own = PrefixStore(f"kdkit-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}-{turn}", store)
    distributed.init_process_group(store=own, rank=rank, world_size=world, timeout=_PATIENCE)
    told = PrefixStore("told", own)
    try:
        yield
    except Exception as error:
        if _was_told(told):
            raise RemoteRankError("another process of this run has an error, and says which") from error
        if _of_the_group(error):
            raise KdkitError(
                f"another process of this run was lost, or did not answer for {_PATIENCE.total_seconds() / 60:.0f} "
                f"minutes ({first_line(error)}); `torchrun --max-restarts=1 ...` with --out goes on after such a loss"
            ) from error
        raise
    # The group's threads let go of the last message's tensors for which they need Python's lock; older torch waits for
    # those threads with the lock in its hand, for ever if they are late.
    time.sleep(_LETTING_GO)
    distributed.destroy_process_group()


def launched() -> bool:
    """Whether torchrun started this process."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


def restarted() -> bool:
    """Whether torchrun started this process in place of one that was lost."""
    return launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def own_device(device: torch.device) -> torch.device:
    """Return this process's own device of a kind: of several GPUs the one that torchrun's LOCAL_RANK says."""
    if not collectives.is_distributed():
        return device
    if device.type == "mps":  # which no group can talk over
        return torch.device("cpu")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return device


def require_shareable(data: Data, batch_sizes: Iterable[int]) -> None:
    """Raise where the work of a run cannot be shared out among its processes."""
    if not collectives.is_distributed():
        return
    if len(set(collectives.all_gather_objects([(data.fingerprint, optional_member(data, Data, "train_digest"))]))) > 1:
        raise DataError(
            "the processes of this run have different data, so that one may learn from what another is scored on; "
            "make it inside of recipe(), where randomness is seeded, or split it with a generator of its own seed"
        )
    if any(isinstance(split, LoaderSplit) for split in (data.train, data.validation, data.test)):
        raise DataError(
            f"{collectives.world_size()} processes share out the rows of a split, and a DataLoader of your own has an order "
            "of its own; pass its Dataset instead"
        )
    small = min(batch_sizes)
    if small < 2 * collectives.world_size():
        raise RecipeError(
            f"a batch of {small} cannot be shared out among {collectives.world_size()} processes, since each takes at least "
            "two samples, which batch norm needs; take fewer processes or a larger batch_size"
        )


def notices(modules: Iterable[nn.Module]) -> Iterator[str]:
    """Say what a reader of the figures must know of a run in several processes."""
    if not collectives.is_distributed():
        return
    yield f"{collectives.world_size()} processes share out each batch; a loss that relates samples sees the part of its own"
    if any(_takes_statistics(part) for module in modules for part in module.modules()):
        yield "batch norm takes its statistics from each process's part of a batch"


class DistributedModule:
    """A lesson as it is called in each step, whose gradients DistributedDataParallel averages over the processes.

    Of one process, and of a balancer that averages gradients itself, it is the lesson as it is. Terms that the labels
    or the weights leave out reach no parameter, so it has to look for unused ones in each step.
    """

    def __init__(self, lesson: nn.Module, *, averages: bool, compiled: bool) -> None:
        self._parallel: DistributedDataParallel | None = None
        collectives.sync_buffers([lesson])
        if collectives.is_distributed() and averages:
            collectives.sync_parameters(lesson)
        elif collectives.is_distributed():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", _OLD_NAME)
                self._parallel = DistributedDataParallel(lesson, broadcast_buffers=False, find_unused_parameters=True)
        called: Callable[..., Any] = lesson if self._parallel is None else self._parallel
        self._called: Callable[..., Any] = torch.compile(called) if compiled else called

    def __call__(self, *given: Any) -> dict[str, Tensor]:
        """Return the terms."""
        if self._parallel is None:
            terms: dict[str, Tensor] = self._called(*given)
            return terms
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", _ALWAYS_USED)
            found: dict[str, Tensor] = self._called(*given)
        return found

    def update(self, *, ends: bool) -> AbstractContextManager[Any]:
        """Return the context of a micro-batch: gradients are averaged in the last one of an update only."""
        return _NOTHING if ends or self._parallel is None else self._parallel.no_sync()


def weight_of(mine: int, whole: int) -> float:
    """Return what the mean over this process's part of a batch counts for in the mean over processes: 1 where equal."""
    return 1.0 if mine == whole else mine * collectives.world_size() / whole


def _takes_statistics(part: nn.Module) -> bool:
    """Whether it is a batch norm of each process's own; not one that is frozen, which a lesson keeps in eval mode."""
    own = isinstance(part, nn.modules.batchnorm._BatchNorm) and not isinstance(part, nn.SyncBatchNorm)
    parameters = list(part.parameters()) if own else []
    return own and (not parameters or any(each.requires_grad for each in parameters))


def _share_cores() -> None:
    """Give each process of this machine as many threads as there are cores for it, unless somebody chose."""
    if os.environ.get("OMP_NUM_THREADS", "1") != "1":  # torchrun itself sets 1, whatever there is
        return
    torch.set_num_threads(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _was_told(store: Any) -> bool:
    """Whether another process had its error before this one, which is noted with that."""
    with suppress(RuntimeError):  # the store went with the process that kept it
        return bool(store.add("errors", 1) > 1)
    return False


def _of_the_group(error: Exception) -> bool:
    """Whether it is what a group raises when a process is gone, which gloo tells by its text alone."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
