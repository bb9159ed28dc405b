"""The base classes of a data set and its splits."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, Literal, NoReturn

from torch import Tensor
from torch.utils.data import DataLoader

from kdkit.data.batch import Batch, as_targets
from kdkit.data.samples import SampleKeys, as_weights, missing_labels
from kdkit.errors import DataError
from kdkit.utils.randomness import seeded_on_cpu
from kdkit.utils.reprs import describe_count, describe_names

Task = Literal["multiclass", "multilabel", "regression"]

# The members of Split and Data are `cached_property`s, so a subclass may define a member in any form: as a property, as
# a class attribute, as a dataclass field, or by assignment in __init__, which a plain property would refuse.


class Split:
    """Base class of a split: samples that are read by row. A sample is a pure function of (seed, id, draw).

    A subclass defines `ids` and `batch`; the other members have defaults.
    """

    @cached_property
    def ids(self) -> Tensor:
        """(rows,) int64, unique per sample over all splits."""
        _raise_undefined(self, "ids")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({describe_count(len(self), 'sample')})"

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Tensor, draw: int) -> Batch:
        """Return the samples in these rows, (samples,) int64, in this order and this draw of their augmentation."""
        _raise_undefined(self, "batch(rows, draw)")

    def report_tensors(self, rows: Tensor) -> Mapping[str, Tensor]:
        """Return tensors by which a plugin shows the samples in these rows in a report, each (samples, ...).

        They are stored with the run, for the few samples that `kdkit report` shows; none by default.
        """
        return {}

    def report_names(self, rows: Tensor) -> Sequence[str]:
        """Return the names of the samples in these rows, such as those of their files, for a report; none by default.

        They are stored with the tensors. A section of a report finds them in `run.sample_names`.
        """
        return ()

    @cached_property
    def labels(self) -> Tensor | None:
        """The labels of all rows, (rows, ...); None, the default, if only `batch` returns them.

        kdkit counts the positives of the training split from them, and would not read every sample for that.
        """
        return None

    @cached_property
    def groups(self) -> Tensor | None:
        """(rows,) int64, equal for dependent samples, such as the records of one patient; None, the default, if none.

        Bootstrap intervals of metrics resample whole groups.
        """
        return None

    @cached_property
    def parallel(self) -> bool | Literal["threads"]:
        """How batches are read next to a GPU, unless `Training.workers` is a number; False, the default: one by one.

        True: in worker processes, if reading a batch takes long. "threads": in threads, which pass a batch on without a
        copy, if reading is mostly copying memory, or other code that releases Python's lock; `batch` must allow calls
        from several threads.
        """
        return False


class LoaderSplit:
    """A split that is the batches of a user-defined DataLoader, in the order and with the randomness of the loader.

    Batches are pairs (inputs, labels), triples with the weight of each sample, or mappings, whose labels have one of
    the usual keys; see TorchData. A loader of a stream need not have a length.
    """

    keys = SampleKeys()
    source = "a DataLoader yields"  # how messages about its batches begin

    per_position = False  # whether labels are classes of positions, (batch, *positions)
    # As of a Split; those of a loader are not known before its batches.
    labels: Tensor | None = None
    groups: Tensor | None = None

    seed: int | None = None  # from which the loader draws when it is opened; None: from the global random states

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
            batches = iter(self.loader)  # a DataLoader draws a seed for its workers, also if it has none
        for batch in batches:
            inputs, labels, weights = self.keys.split(batch, self.source)
            labels = missing_labels(inputs) if labels is None else as_targets(labels, per_position=self.per_position)
            yield Batch(inputs, labels, weights=as_weights(weights, labels, self.source))

    def batched(self, size: int, *, pin: bool = False) -> "LoaderSplit":
        """Return the split in batches of this size, in pinned memory if `pin`; a DataLoader keeps its own batches."""
        return self


class WorkerInit:
    """Takes a worker process of a DataLoader out of the process group of the run, to which signals are sent.

    torchrun, `timeout` and terminals send them so. The main process ends a run after a step, for which it may need more
    batches, and then its workers; if these ended first, it would raise an error. function: `worker_init_fn` of the
    user's DataLoader, called afterwards.
    """

    def __init__(self, function: Callable[[int], object] | None = None) -> None:
        self.function = function

    def __call__(self, number: int) -> None:
        """Prepare the worker process of this number."""
        if os.name == "posix":
            os.setpgid(0, 0)
        if self.function is not None:
            self.function(number)


class Data:
    """Base class of the data of an experiment: a training, a validation and a test split.

    A subclass defines the members from `classes` to `test`; those from `has_unknown` on have defaults.
    """

    def __repr__(self) -> str:
        # Only what is known without work: to read a split may take minutes.
        parts = {name: vars(self)[name] for name in ("train", "validation", "test") if vars(self).get(name) is not None}
        splits = [f"{name}: {split}" for name, split in parts.items()]
        classes = vars(self).get("classes")
        names = [f"{describe_count(len(classes), 'class', 'classes')} ({describe_names(classes)})"] if classes else []
        return f"{type(self).__name__}({', '.join([*names, *splits])})"

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the label columns or of the class indices."""
        _raise_undefined(self, "classes")

    @cached_property
    def task(self) -> Task:
        """The kind of the labels, "multiclass", "multilabel" or "regression"; see `Batch`."""
        _raise_undefined(self, "task")

    @cached_property
    def draws(self) -> int | None:
        """How many deterministic augmentations each sample has; None if their randomness is unknown."""
        _raise_undefined(self, "draws")

    @cached_property
    def fingerprint(self) -> str:
        """A text that changes whenever any sample changes."""
        _raise_undefined(self, "fingerprint")

    @cached_property
    def train(self) -> Split | LoaderSplit:
        """The split that nets are trained on."""
        _raise_undefined(self, "train")

    @cached_property
    def validation(self) -> Split | LoaderSplit:
        """The split that the best epoch and thresholds are chosen on."""
        _raise_undefined(self, "validation")

    @cached_property
    def test(self) -> Split | LoaderSplit | None:
        """The split that metrics are reported on; None to report them on `validation`."""
        _raise_undefined(self, "test")

    @cached_property
    def has_unknown(self) -> bool:
        """Whether labels by class may be NaN, which stands for an unknown label; False, the default, if not."""
        return False

    @cached_property
    def position_dims(self) -> int:
        """The number of dimensions of the positions that have labels each: 1 for tokens, 2 for pixels.

        Labels are then classes, (batch, *positions), or 0 and 1 by class, (batch, classes, *positions). 0, the default,
        if there is a label per sample.
        """
        return 0

    @cached_property
    def ignored_labels(self) -> tuple[int, ...]:
        """Class indices that stand for no label, such as -100; none by default. Metrics and losses leave them out."""
        return ()

    @cached_property
    def summary(self) -> str:
        """A text on which samples were read and which were excluded; read after the splits, when a run begins."""
        return ""

    @cached_property
    def notices(self) -> Sequence[str]:
        """Lines that a reader of the metrics must know; read after the splits, when a run begins."""
        return ()

    @cached_property
    def preparation(self) -> Mapping[str, Any]:
        """How raw samples become the inputs of a batch, as values for JSON; {}, the default, if it is not described.

        Exported files carry it, for programs that have neither kdkit nor torch. By convention it has a list `steps` of
        objects with the name of a `step` and its options, in the order in which they are applied; see docs/export.md.
        """
        return {}

    @cached_property
    def train_digest(self) -> str | None:
        """A text that changes with each training sample, which the teacher cache uses if `fingerprint` does not.

        None if not all training samples can be seen.
        """
        return ""

    @cached_property
    def augment(self) -> Any:
        """User code that changes training samples, such as a tuple of callables; the cache key depends on it."""
        return None

    @cached_property
    def batch_transform(self) -> Callable[[Any, Tensor], tuple[Any, Tensor]] | None:
        """A function of inputs and labels that changes each training batch, such as mixup; None, the default, if none.

        All networks get the changed batch. It is called on the device that trains, and may mix samples.
        """
        return None

    @cached_property
    def has_labels(self) -> bool:
        """Whether training samples have labels; True, the default. Otherwise no term may learn from labels."""
        return True

    @cached_property
    def has_weights(self) -> bool:
        """Whether training samples have weights, see `Batch`; False, the default, if not."""
        return False


def require_splits(data: Data) -> None:
    """Raise DataError if a split of a data set has no base class, with the defaults of members that it may lack."""
    for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        if not isinstance(split, Split | LoaderSplit | None):
            raise DataError(
                f"the {name} split of {type(data).__name__} is a {type(split).__name__}; expected a subclass of "
                "kdkit.Split, with ids and batch(rows, draw), or a kdkit.LoaderSplit"
            )


def split_name(data: Data, split: Split | LoaderSplit) -> str:
    """Return the name of a split of a data set; "" if it is none of them."""
    names = ("validation", "test", "train")
    return getattr(split, "name", None) or next((name for name in names if getattr(data, name) is split), "")


def _raise_undefined(value: object, member: str) -> NoReturn:
    raise DataError(f"{type(value).__name__} does not define {member}, which its base class in kdkit requires")
