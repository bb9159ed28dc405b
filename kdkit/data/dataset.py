"""The base classes of a data set and its splits."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from threading import Thread
from typing import Any, Literal, NoReturn

from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from kdkit.data.batch import Batch, as_targets
from kdkit.data.samples import SampleKeys, as_weights, missing_labels, require_samples
from kdkit.errors import DataError
from kdkit.utils.randomness import seeded_on_cpu
from kdkit.utils.reprs import describe_count, describe_names

Task = Literal["multiclass", "multilabel", "regression"]

# The members of Split and Data are `cached_property`s, so that a subclass may define a member in any form: as a
# property, a class attribute, a dataclass field, or by assignment in __init__, which a plain property would not allow.
# mypy allows this too. pyright allows it for members without a declared type only, so they are defined in a private
# base class, and assigned in the public one under `if not MYPY`, which pyright reads and mypy skips.
MYPY = False  # mypy regards a constant of this name as True


class _SplitMembers:
    @cached_property
    def ids(self) -> Tensor:
        """The ids of the samples, (rows,) int64, unique over all splits."""
        _raise_undefined(self, "ids")

    @cached_property
    def labels(self) -> Tensor | None:
        """The labels of all rows, (rows, ...); None, the default, if only `batch` returns labels.

        kdkit uses them to count the positives of the training split. It does not read all samples for this purpose.
        """
        return None

    @cached_property
    def groups(self) -> Tensor | None:
        """The group of each sample, (rows,) int64; None, the default, if samples are independent.

        Dependent samples, such as the records of one patient, have the same group. Bootstrap intervals of metrics
        resample whole groups.
        """
        return None

    @cached_property
    def lengths(self) -> Tensor | None:
        """The length of each sample, (rows,), in any unit; None, the default, if batches need not be alike in it.

        Training batches then have samples of about the same length, so they have less padding.
        """
        return None

    @cached_property
    def sampler(self) -> "Sampler[int] | None":
        """A sampler that draws the rows of each training epoch; None, the default, to read each row once in each.

        It is seeded by the seed of the run and the epoch, see TorchData, so it must not have a state of its own.
        """
        return None

    @cached_property
    def parallel(self) -> bool | Literal["threads"]:
        """How batches are read if a GPU trains and `Training.workers` is None.

        False, the default: one by one in the main process. True: in worker processes, for batches that take long to
        read. "threads": in threads, which pass batches without a copy, if reading mostly copies memory or runs other
        code that releases Python's GIL; `batch` must then be thread-safe.
        """
        return False


class Split(_SplitMembers):
    """Base class of a split: samples that are read by row. A sample is a pure function of (seed, id, draw).

    A subclass defines `ids` and `batch`; the other members have defaults.
    """

    if not MYPY:
        ids = _SplitMembers.ids
        labels = _SplitMembers.labels
        groups = _SplitMembers.groups
        lengths = _SplitMembers.lengths
        sampler = _SplitMembers.sampler
        parallel = _SplitMembers.parallel

    def __repr__(self) -> str:
        return f"{type(self).__name__}({describe_count(len(self), 'sample')})"

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Tensor, draw: int) -> Batch:
        """Return the samples in these rows, (samples,) int64, in this order, with this draw of their augmentation."""
        _raise_undefined(self, "batch(rows, draw)")

    def report_tensors(self, rows: Tensor) -> Mapping[str, Tensor]:
        """Return the tensors that a plugin needs to show the samples in these rows in a report, each (samples, ...).

        They are stored with the run, for the few samples that `kdkit report` shows. None by default.
        """
        return {}

    def report_names(self, rows: Tensor) -> Sequence[str]:
        """Return the names of the samples in these rows, such as their file names; none by default.

        They are stored with the tensors. A report section reads them from `run.sample_names`. Their digests are stored
        for all training samples, so that a later run notices weights that were trained on its test samples.
        """
        return ()


class LoaderSplit:
    """The batches of a user-defined DataLoader as a split, in the loader's own order and with its randomness.

    Batches are pairs (inputs, labels), triples with the weight of each sample, or mappings with one of the usual keys
    for labels; see TorchData. The loader of a stream may have no length.
    """

    keys = SampleKeys()
    must_yield = "a DataLoader yields"  # the start of messages about its batches

    # As in a Split. They are not known before the loader's batches are read.
    labels: Tensor | None = None
    groups: Tensor | None = None

    seed: int | None = None  # of the loader's random numbers; None uses the global random states

    def __init__(self, loader: "DataLoader[Any]") -> None:
        self.loader = loader
        if getattr(loader, "num_workers", 0) and not isinstance(loader.worker_init_fn, WorkerInit):
            loader.worker_init_fn = WorkerInit(loader.worker_init_fn)

    def __len__(self) -> int:
        return len(self.loader)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.loader).__name__} of {type(self.loader.dataset).__name__})"

    def __iter__(self) -> Iterator[Batch]:
        with nullcontext() if self.seed is None else seeded_on_cpu(self.seed):
            batches = iter(self.loader)  # a DataLoader draws a seed for its workers, even if it has no workers
        for index, batch in enumerate(batches):
            inputs, labels, weights = self.keys.split(batch, self.must_yield)
            labels = missing_labels(inputs) if labels is None else self._as_targets(labels)
            require_samples(labels, index, self.must_yield)
            yield Batch(inputs, labels, weights=as_weights(weights, labels, self.must_yield))

    def batched(self, size: int, *, pin: bool = False) -> "LoaderSplit":
        """Return the split in batches of this size, in pinned memory with `pin`. A DataLoader keeps its own batches."""
        return self

    def _as_targets(self, labels: Any) -> Any:
        return as_targets(labels)


class WorkerInit:
    """Removes a DataLoader worker process from the process group of the run, so that it does not receive its signals.

    torchrun, `timeout` and terminals send signals to the whole group. After a signal, the main process finishes its
    step, may need more batches for it, and then ends its workers. If the workers ended first, it would raise an error.
    function: the `worker_init_fn` of the user's DataLoader, called afterwards.
    """

    def __init__(self, function: Callable[[int], object] | None = None) -> None:
        self.function = function

    def __call__(self, number: int) -> None:
        """Prepare the worker process with this number."""
        if sys.platform == "win32":
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the only signal that reaches it
        else:
            os.setpgid(0, 0)
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid != os.getppid():
            # It was started by a fork server, as is usual from Python 3.14 on. torch ends a worker whose parent is
            # killed, but the server is its parent, and waits for the workers.
            Thread(target=_end_after, args=(parent,), name="kdkit-worker-watch", daemon=True).start()
        if self.function is not None:
            self.function(number)


def _end_after(parent: Any) -> None:
    """End this process when the process that started it has ended."""
    parent.join()
    os._exit(1)


class _DataMembers:
    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the label columns or class indices."""
        _raise_undefined(self, "classes")

    @cached_property
    def task(self) -> Task:
        """The kind of the labels, "multiclass", "multilabel" or "regression"; see `Batch`."""
        _raise_undefined(self, "task")

    @cached_property
    def draws(self) -> int | None:
        """The number of deterministic augmentations of each sample; None if their randomness is unknown."""
        _raise_undefined(self, "draws")

    @cached_property
    def fingerprint(self) -> str:
        """A text that changes whenever any sample changes."""
        _raise_undefined(self, "fingerprint")

    @cached_property
    def train(self) -> Split | LoaderSplit:
        """The split that the networks are trained on."""
        _raise_undefined(self, "train")

    @cached_property
    def validation(self) -> Split | LoaderSplit:
        """The split on which the best epoch and the thresholds are chosen."""
        _raise_undefined(self, "validation")

    @cached_property
    def test(self) -> Split | LoaderSplit | None:
        """The split on which metrics are reported; None to report them on `validation`."""
        _raise_undefined(self, "test")

    @cached_property
    def has_unknown(self) -> bool:
        """Whether labels by class may be NaN, which means unknown; False by default."""
        return False

    @cached_property
    def position_dims(self) -> int:
        """The number of position dimensions if every position has a label: 1 for tokens, 2 for pixels.

        Labels are then classes, (batch, *positions), or 0 and 1 by class, (batch, classes, *positions). 0, the default,
        means one label per sample.
        """
        return 0

    @cached_property
    def ignored_labels(self) -> tuple[int, ...]:
        """Class indices that mean no label, such as -100; none by default. Metrics and losses leave them out."""
        return ()

    @cached_property
    def summary(self) -> str:
        """A text about the samples that were read and excluded. It is read after the splits, at the start of a run."""
        return ""

    @cached_property
    def notices(self) -> Sequence[str]:
        """What a reader of the metrics must know, as lines. They are read after the splits, at the start of a run."""
        return ()

    @cached_property
    def preparation(self) -> Mapping[str, Any]:
        """How raw samples become the inputs of a batch, as JSON values; {}, the default, if this is not described.

        It is saved in exported files, for programs that have neither kdkit nor torch. By convention it has a list
        `steps` of objects with the name of a `step` and its options, in the order of application; see docs/export.md.
        """
        return {}

    @cached_property
    def train_digest(self) -> str | None:
        """A text that changes whenever any training sample changes, for the teacher cache; "" if `fingerprint` does.

        None if some training samples cannot be seen.
        """
        return ""

    @cached_property
    def augment(self) -> Any:
        """User code that changes training samples, such as a tuple of callables. The cache key depends on it."""
        return None

    @cached_property
    def batch_transform(self) -> Callable[[Any, Tensor], tuple[Any, Tensor]] | None:
        """A function of inputs and labels that changes each training batch, such as mixup; None by default.

        All networks get the changed batch. The function is called on the training device, and may mix samples.
        """
        return None

    @cached_property
    def has_labels(self) -> bool:
        """Whether training samples have labels; True by default. If False, no term may learn from labels."""
        return True

    @cached_property
    def has_weights(self) -> bool:
        """Whether training samples have weights, see `Batch`; False by default."""
        return False


class Data(_DataMembers):
    """Base class of the data of an experiment: a training, a validation and a test split.

    A subclass defines the members from `classes` to `test`; the members from `has_unknown` on have defaults.
    """

    if not MYPY:
        classes = _DataMembers.classes
        task = _DataMembers.task
        draws = _DataMembers.draws
        fingerprint = _DataMembers.fingerprint
        train = _DataMembers.train
        validation = _DataMembers.validation
        test = _DataMembers.test
        has_unknown = _DataMembers.has_unknown
        position_dims = _DataMembers.position_dims
        ignored_labels = _DataMembers.ignored_labels
        summary = _DataMembers.summary
        notices = _DataMembers.notices
        preparation = _DataMembers.preparation
        train_digest = _DataMembers.train_digest
        augment = _DataMembers.augment
        batch_transform = _DataMembers.batch_transform
        has_labels = _DataMembers.has_labels
        has_weights = _DataMembers.has_weights

    def __repr__(self) -> str:
        # Shows only what is already computed: reading a split may take minutes.
        parts = {name: vars(self)[name] for name in ("train", "validation", "test") if vars(self).get(name) is not None}
        splits = [f"{name}: {split}" for name, split in parts.items()]
        classes = vars(self).get("classes")
        names = [f"{describe_count(len(classes), 'class', 'classes')} ({describe_names(classes)})"] if classes else []
        return f"{type(self).__name__}({', '.join([*names, *splits])})"


def require_splits(data: Data) -> None:
    """Raise DataError if a split lacks its base class, which provides the defaults of optional members."""
    for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        if not isinstance(split, Split | LoaderSplit | None):
            raise DataError(
                f"the {name} split of {type(data).__name__} is a {type(split).__name__}; expected a subclass of "
                "kdkit.Split, with ids and batch(rows, draw), or a kdkit.LoaderSplit"
            )


def split_name(data: Data, split: Split | LoaderSplit) -> str:
    """Return the name of a split of the data; "" if it is not one of its splits."""
    names = ("test", "validation", "train")  # data for `evaluate` may have a test split only
    return getattr(split, "name", None) or next((name for name in names if getattr(data, name) is split), "")


def reported_split(data: Data) -> tuple[Literal["validation", "test"], Split | LoaderSplit]:
    """Return the name of the split on which metrics are reported, and the split: the test split, if there is one."""
    return ("validation", data.validation) if data.test is None else ("test", data.test)


def _raise_undefined(value: object, member: str) -> NoReturn:
    raise DataError(f"{type(value).__name__} does not define {member}, which its kdkit base class requires")
