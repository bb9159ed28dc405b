"""Records once they are read: signals, who they are of, labels and ids, row by row."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdkit import DataError
from kdkit_ecg.datasets.scan import Columns
from kdkit_ecg.datasets.signal_split import SignalSplit
from kdkit_ecg.records.header import Header
from kdkit_ecg.records.record import person_vector
from kdkit_ecg.store import StoredSignals


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """signals: float32 (12, time) each; person (records, 5); labels (records, classes); ids, groups (records,) int64.

    groups: the same number for records of one patient; None where each is of another.
    """

    signals: Sequence[NDArray[np.float32]]
    person: Tensor
    labels: Tensor
    ids: Tensor
    groups: Tensor | None

    def split(self, rows: NDArray[np.int64], **options: Any) -> SignalSplit:
        """Return these rows as a split with these options of SignalSplit; the signals are shared, not copied."""
        index, signals = torch.from_numpy(rows), self.signals
        return SignalSplit(
            signals=signals.part(rows) if isinstance(signals, StoredSignals) else [signals[row] for row in rows],
            person=self.person[index],
            labels=self.labels[index],
            ids=self.ids[index],
            groups=None if self.groups is None else self.groups[index],
            **options,
        )


def prepared(
    headers: Sequence[Header], signals: Sequence[NDArray[np.float32]], classes: Columns, people: Sequence[str]
) -> Prepared:
    """Return the records as rows, in the order in which they come; people: who each record is of."""
    known, groups = np.unique(people, return_inverse=True)
    return Prepared(
        signals=signals,
        person=torch.from_numpy(np.stack([person_vector(header.age, header.sex) for header in headers])),
        labels=torch.from_numpy(np.stack([classes.row(header.codes) for header in headers])),
        ids=_ids([header.name for header in headers]),
        groups=None if len(known) == len(people) else torch.from_numpy(groups),
    )


def _ids(names: Sequence[str]) -> Tensor:
    """Return (records,) int64, each a function of the name alone, so that it stays when records join or go."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    ids = [int.from_bytes(digest, "big") >> 1 for digest in digests]
    if len(set(ids)) < len(ids):
        raise DataError("two record names make the same id; rename one of them")
    return torch.tensor(ids)
