"""The interfaces of a data set and its splits."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

from torch import Tensor
from torch.utils.data import DataLoader

from kdkit.data.batch import Batch, as_targets
from kdkit.errors import DataError

Task = Literal["multiclass", "multilabel", "regression"]


class Split(Protocol):
    """Samples that can be fetched by row. A sample is a pure function of (seed, id, draw).

    It may have `groups`, (rows,) int64, the same number for samples that are not independent, such as records of one
    patient, which intervals of scores then draw together; `labels`, (rows, ...), so that they need not be fetched to be
    counted; and `parallel = True`, where batches take time and other processes may fetch them, so that they do beside
    a GPU.
    """

    @property
    def ids(self) -> Tensor:
        """(rows,) int64, unique per sample over all splits."""
        ...

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor, draw: int) -> Batch:
        """Return the samples in these rows, (samples,) int64, in this order and in this draw of their augmentation."""
        ...


class Data(Protocol):
    """The samples of an experiment: what is learned from, chosen on and reported on.

    It may have a `summary`, a text that says what was read and what was left out, and `notices`, lines that a reader
    of its figures must know. Both are read when a run begins, after its splits. Where its fingerprint does not change
    with each training sample, it has a `train_digest` that does, or that is None where not all of them can be seen.
    Where code of the user's own changes its training samples, it has this in `augment`, such as a tuple of callables,
    so that recorded answers depend on that code too.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """The names, in the order of the label columns (or of the class indices)."""
        ...

    @property
    def task(self) -> Task:
        """What the labels are: see Batch."""
        ...

    @property
    def draws(self) -> int | None:
        """How many deterministic augmentations each sample has; None where their randomness is unknown."""
        ...

    @property
    def fingerprint(self) -> str:
        """A text that changes whenever any sample does."""
        ...

    @property
    def train(self) -> "Split | LoaderSplit":
        """What is learned from."""
        ...

    @property
    def validation(self) -> "Split | LoaderSplit":
        """What epochs and thresholds are chosen on."""
        ...

    @property
    def test(self) -> "Split | LoaderSplit | None":
        """What is reported on; None to report on `select`."""
        ...


class LoaderSplit:
    """Batches from a DataLoader of the user's own, in the order and with the randomness it has."""

    def __init__(self, loader: "DataLoader[Any]") -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for given in self.loader:
            if isinstance(given, Mapping) or len(given) != 2:
                raise DataError(
                    f"a DataLoader yields pairs (inputs, labels); got a {type(given).__name__} of {len(given)}"
                )
            inputs, labels = given
            yield Batch(inputs, as_targets(labels))
