"""Hold the records of a data set in memory: signals, persons, labels and ids, in rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdkit import DataError
from kdkit_ecg.datasets.signal_split import SignalSplit
from kdkit_ecg.labels import LabelEncoder
from kdkit_ecg.person import person_vector
from kdkit_ecg.records.source import RecordSource
from kdkit_ecg.store import StoredSignals


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledRecords:
    """Records in rows: signals, float32 (leads, time) each; person (records, 5); labels (records, classes or numbers).

    ids, groups: (records,) int64; groups are equal for records of one patient, None if no patient has two records.
    names: of the records. contents: a hash of each record's samples, as they were read.
    """

    signals: Sequence[NDArray[np.float32]]
    person: Tensor
    labels: Tensor
    ids: Tensor
    groups: Tensor | None
    names: Sequence[str]
    contents: Sequence[bytes]

    def split(self, rows: NDArray[np.int64], **options: Any) -> SignalSplit:
        """Return these rows as a split with these options of SignalSplit. The signals are shared, not copied."""
        index, signals = torch.from_numpy(rows), self.signals
        return SignalSplit(
            # Stored signals stay in their file; a list of them would read every signal.
            signals=signals.select(rows) if isinstance(signals, StoredSignals) else [signals[row] for row in rows],
            person=self.person[index],
            labels=self.labels[index],
            ids=self.ids[index],
            groups=None if self.groups is None else self.groups[index],
            names=[self.names[row] for row in rows.tolist()],
            **options,
        )


def label_records(
    headers: Sequence[RecordSource],
    signals: Sequence[NDArray[np.float32]],
    contents: Sequence[bytes],
    encoder: LabelEncoder,
    persons: Sequence[str],
) -> LabelledRecords:
    """Return the records as rows in the given order. persons: an identifier of each record's person."""
    # Consecutive numbers for the persons; only equality matters.
    unique, groups = np.unique(persons, return_inverse=True)
    return LabelledRecords(
        signals=signals,
        person=torch.from_numpy(np.stack([person_vector(header.age, header.sex) for header in headers])),
        labels=torch.from_numpy(np.stack([encoder.row(header.codes) for header in headers])),
        ids=record_ids([header.name for header in headers]),
        groups=None if len(unique) == len(persons) else torch.from_numpy(groups),
        names=[header.name for header in headers],
        contents=contents,
    )


def record_ids(names: Sequence[str]) -> Tensor:
    """Return (records,) int64 ids. Each depends on the name alone, so adding or removing records does not change it."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    ids = [int.from_bytes(digest, "big") >> 1 for digest in digests]  # 63 bits, so that int64 is not negative
    if len(set(ids)) < len(ids):
        raise DataError("two record names have the same id; rename one of the records")
    return torch.tensor(ids)
