"""Run on several ranks: join the process group of torchrun, divide each batch, average gradients, and end together."""

import gc
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from traceback import clear_frames
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from kdkit.data.dataset import Data, LoaderSplit
from kdkit.errors import DataError, KdkitError, RecipeError, RemoteRankError, first_line
from kdkit.utils import collectives
from kdkit.utils.cores import usable_cores

_TIMEOUT = timedelta(minutes=30)  # of a collective, after which a silent rank counts as lost
_THREADS_END = 0.1  # seconds
# A warning of DistributedDataParallel since torch 2.14, by its text; the replacement is not in torch 2.8.
_OLD_NAME = "`broadcast_buffers` is deprecated"
_NO_CONTEXT = nullcontext()
_CAPTURE_ONCE = "skip_fwd_side_effects_in_bwd_under_checkpoint"  # an option of torch's compiler


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
    distributed.init_process_group(_backend(), store=group_store, rank=rank, world_size=world, timeout=_TIMEOUT)
    error_store = PrefixStore("errors", group_store)
    try:
        yield
    except Exception as error:
        # The frames of the error refer to the group, whose connections then stay open: others would wait for this rank
        # if the program handles the error.
        for cause in _chain(error):
            clear_frames(cause.__traceback__)
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
        _leave()


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


def require_divisible(data: Data, batch_sizes: Iterable[int]) -> None:
    """Raise DataError or RecipeError if the batches of a run cannot be divided among its ranks."""
    if not collectives.is_distributed():
        return
    ranks = collectives.world_size()
    if any(isinstance(split, LoaderSplit) for split in (data.train, data.validation, data.test)):
        raise DataError(
            f"{ranks} processes divide the rows of a split, but a user-defined DataLoader has its own order; pass its "
            "Dataset instead, or a Dataset with rows instead of a stream"
        )
    smallest = min(batch_sizes)
    if smallest < 2 * ranks:
        raise RecipeError(
            f"a batch of {smallest} cannot be divided among {ranks} processes, because each needs at least two samples "
            "for batch norm; use fewer processes or a larger batch_size"
        )


def notices(modules: Iterable[nn.Module]) -> Iterator[str]:
    """Yield the facts that a reader of the results of several ranks has to know."""
    if not collectives.is_distributed():
        return
    yield f"{collectives.world_size()} processes divide each batch; a loss that relates samples sees one part of it"
    if any(_has_batch_statistics(part) for module in modules for part in module.modules()):
        yield "batch norm computes its statistics from each process's part of a batch"


class DistributedModule:
    """The module of a stage as the training loop calls it: compiled if requested, with gradients averaged over ranks.

    On a single rank, and for a balancer that averages gradients itself, there is no DistributedDataParallel.
    """

    def __init__(self, module: nn.Module, *, averages: bool, compiled: bool) -> None:
        self._parallel: DistributedDataParallel | None = None
        collectives.sync_buffers([module])
        if collectives.is_distributed() and averages:
            collectives.sync_module(module, next(module.parameters()).device)
        elif collectives.is_distributed():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", _OLD_NAME)
                # A term whose weight is 0, or that has no label in this batch, reaches no parameter: some may be
                # unused.
                self._parallel = DistributedDataParallel(
                    _WithUnused(module), broadcast_buffers=False, find_unused_parameters=True
                )
        forward: Callable[..., Any] = module if self._parallel is None else self._parallel
        self._forward: Callable[..., Any] = _compiled(forward) if compiled else forward

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        """Return the terms by label."""
        terms: dict[str, Tensor] = self._forward(*inputs)
        return terms

    def update(self, *, ends: bool) -> AbstractContextManager[Any]:
        """Return the context of a micro-batch: only in the last one of an update are gradients averaged over ranks."""
        return _NO_CONTEXT if ends or self._parallel is None else self._parallel.no_sync()


class _WithUnused(nn.Module):
    """A module with a parameter that is never used: if all are, DistributedDataParallel prints a warning from C++."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        trained = next(parameter for parameter in module.parameters() if parameter.requires_grad)
        self.unused = nn.Parameter(trained.new_zeros(()))

    def forward(self, *inputs: Any) -> Any:
        """Call the module."""
        return self.module(*inputs)


def rank_share(samples: int, whole: int | None) -> tuple[float, float]:
    """Return the weight of this rank's part of a batch, and the number of samples that its losses stand for.

    The weight is that of the mean over the part in the mean over ranks: 1 if each rank has the whole batch, or parts
    are equal. whole: the size of the batch, which is known if several ranks divide it.
    """
    ranks = collectives.world_size()
    if ranks == 1 or whole is None:
        return 1.0, samples
    weight = 1.0 if samples == whole else samples * ranks / whole
    return weight, whole * weight / ranks


def _leave() -> None:
    """Leave the process group."""
    # The threads of the group release the tensors of the last message, for which they need Python's lock. Older
    # versions of torch wait for these threads while they hold the lock: without the pause they might wait forever.
    time.sleep(_THREADS_END)
    distributed.destroy_process_group()
    gc.collect()  # of modules that DistributedDataParallel has wrapped, which refer to the group


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and those that it was raised from or after."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _backend() -> str | None:
    """Return gloo if ranks share a GPU, which NCCL refuses; otherwise None, torch's choice for each device."""
    shares = 0 < torch.cuda.device_count() < int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return "gloo" if shares else None


def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(forward)
    # A tap in a module that recomputes its activations would otherwise break the graph there.
    if hasattr(torch._dynamo.config, _CAPTURE_ONCE):  # not in torch 2.8
        compiled = torch._dynamo.config.patch({_CAPTURE_ONCE: True})(compiled)
    return compiled


def _has_batch_statistics(part: nn.Module) -> bool:
    """Whether a module is a batch norm in training mode, and not one that synchronizes or is frozen."""
    if not isinstance(part, nn.modules.batchnorm._BatchNorm) or isinstance(part, nn.SyncBatchNorm):
        return False
    parameters = list(part.parameters())
    return not parameters or any(parameter.requires_grad for parameter in parameters)


def _failed_elsewhere(store: Any) -> bool:
    """Whether another rank raised its error before this one; notes the error of this rank as well."""
    with suppress(RuntimeError):  # the store ends with the process that holds it
        return bool(store.add("count", 1) > 1)
    return False
