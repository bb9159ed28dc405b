"""Cut signals into windows of one length, augmented and different in each draw during training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdkit import Batch, RecipeError, Split
from kdkit.utils.seeds import derive_seed
from kdkit_ecg.augmentations import Augmentation, Mixup
from kdkit_ecg.leads import LEADS
from kdkit_ecg.store import StoredSignals

# The names of the tensors that a report shows records from.
SIGNAL, RATE, IN_MV = "ecg_signal", "ecg_rate", "ecg_in_mv"

Window = Literal["random", "centre"]
Augmentations = tuple[Augmentation | Mixup, ...]

# Part of the seeds for augmentation, mixup partner and mixup share, so that each draws different numbers. The seed of
# the window has no such part.
_AUGMENTATION, _PARTNER, _SHARE = 1, 2, 3


class Ecg(NamedTuple):
    """The inputs of a network: signal (batch, leads, time), person (batch, 5).

    person is age/100, age known, female, male, sex known. Unknown values are 0.
    """

    signal: Tensor
    person: Tensor


@dataclass(kw_only=True, eq=False, repr=False)
class SignalSplit(Split):
    """Records as a split of kdkit. Each sample is a window of `length` samples, a pure function of (seed, id, draw).

    signals: one float32 (leads, time) array per record, in memory or in a store, of any length. rate in Hz.
    person: (records, 5) float32. labels: (records, classes) float32 of 0 and 1, or (records, numbers). ids: (records,)
    int64.
    window: "random" moves the window (or the zero padding of a record that is too short) in each draw; "centre" does
    not.
    groups: (records,) int64, the same number for records of one patient; None if no patient has two records.
    in_mv: whether signals are in mV, not scaled. leads: names of the rows of each signal. names: of the records, or
    none.
    augment: applied in order to the signal in the window, not to the padding, differently in each draw.
    """

    signals: Sequence[NDArray[np.float32]]
    person: Tensor
    labels: Tensor = field()  # field(): otherwise the default would be the property of Split
    ids: Tensor = field()
    length: int
    rate: float
    window: Window
    seed: int = 0
    augment: Augmentations = ()
    groups: Tensor | None = None
    in_mv: bool = False
    leads: tuple[str, ...] = LEADS
    names: Sequence[str] = ()

    @property
    def parallel(self) -> bool | Literal["threads"]:
        """Threads copy windows; augmentations are Python code, so processes are faster."""
        return True if self.augment else "threads"

    def __len__(self) -> int:
        return len(self.signals)

    def batch(self, rows: Tensor | Sequence[int], draw: int) -> Batch:
        """Return the windows of these records in this draw, signal (rows, leads, length)."""
        index = torch.as_tensor(rows)
        windows, person, labels = self._windows(index, draw), self.person[index], self.labels[index]
        if self.augment and isinstance(self.augment[-1], Mixup):
            shares, partners = self._mixup(self.augment[-1], index, draw)
            # Mixup (Zhang et al. 2018): share * sample + (1 - share) * partner, for signal, person and labels alike.
            windows = shares[:, None, None] * windows + (1 - shares[:, None, None]) * self._windows(partners, draw)
            person = shares[:, None] * person + (1 - shares[:, None]) * self.person[partners]
            labels = shares[:, None] * labels + (1 - shares[:, None]) * self.labels[partners]
        return Batch(Ecg(windows, person), labels, self.ids[index], draw)

    def select(self, rows: NDArray[np.int64], **options: Any) -> "SignalSplit":
        """Return these records as a split with other options. The signals are shared, not copied."""
        index, signals = torch.from_numpy(rows), self.signals
        return replace(
            self,
            # Stored signals stay in their file; a list of them would read every signal.
            signals=signals.select(rows) if isinstance(signals, StoredSignals) else [signals[row] for row in rows],
            person=self.person[index],
            labels=self.labels[index],
            ids=self.ids[index],
            groups=None if self.groups is None else self.groups[index],
            names=self.report_names(index),
            **options,
        )

    def report_tensors(self, rows: Tensor) -> dict[str, Tensor]:
        """Return what a report shows of records: their signals (rows, 12, length) float16, rates, and units.

        A lead that the data does not have is NaN. Empty without any of the twelve leads.
        """
        if not set(self.leads) & set(LEADS):
            return {}
        count, windows = len(rows), self._windows(rows, 0).half()
        signal = windows
        if self.leads != LEADS:
            signal = torch.full((count, len(LEADS), self.length), math.nan, dtype=torch.half)
            for position, lead in enumerate(self.leads):
                if lead in LEADS:
                    signal[:, LEADS.index(lead)] = windows[:, position]
        return {SIGNAL: signal, RATE: torch.full((count,), float(self.rate)), IN_MV: torch.full((count,), self.in_mv)}

    def report_names(self, rows: Tensor) -> list[str]:
        """Return the names of records, as their files have them."""
        return [self.names[row] for row in rows.tolist()] if self.names else []

    def _windows(self, index: Tensor, draw: int) -> Tensor:
        leads = self._shape(int(index[0]))[0]
        # Each window is copied once, into uninitialised memory. This is as fast as one gather, and works for any record
        # length.
        windows = np.empty((len(index), leads, self.length), dtype=np.float32)
        for position, row in enumerate(index.tolist()):
            self._fill(windows[position], row, draw)
        return torch.from_numpy(windows)

    def _fill(self, window: NDArray[np.float32], row: int, draw: int) -> None:
        """Write the window of a record to `window`, (leads, length)."""
        time = self._shape(row)[1]
        spare = time - self.length  # negative if the record is shorter than the window
        offset = self._offset(row, draw, abs(spare))  # of the window in the record, or of the record in the window
        if spare >= 0:
            window[:] = self._augmented(self._samples(row, offset, offset + self.length), row, draw)
        else:
            end = offset + time
            window[:, :offset] = 0
            window[:, offset:end] = self._augmented(self._samples(row, 0, time), row, draw)
            window[:, end:] = 0

    def _shape(self, row: int) -> tuple[int, ...]:
        return self.signals.shape(row) if isinstance(self.signals, StoredSignals) else self.signals[row].shape

    def _samples(self, row: int, start: int, stop: int) -> NDArray[np.float32]:
        """Return the samples of a record from `start` to `stop`, (leads, stop - start)."""
        if isinstance(self.signals, StoredSignals):  # reads only the window of a long record
            return self.signals.window(row, start, stop)
        samples = self.signals[row][:, start:stop]
        samples.flags.writeable = False  # an augmentation that writes to them would change the record for good
        return samples

    def _augmented(self, signal: NDArray[np.float32], row: int, draw: int) -> NDArray[np.float32]:
        for position, augmentation in enumerate(self.augment):
            if not isinstance(augmentation, Mixup):
                shape = signal.shape
                signal = augmentation(signal, self.rate, self._generator(row, draw, _AUGMENTATION, position))
                if np.shape(signal) != shape:  # one lead would be copied to all
                    raise RecipeError(
                        f"{augmentation!r} must keep the shape (leads, time), {shape}; it returned {np.shape(signal)}"
                    )
        return signal

    def _mixup(self, mixup: Mixup, index: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """Return the share of each sample in its mixture, (rows,) float32, and the partner rows, (rows,) int64."""
        shares = [mixup.share(self._generator(row, draw, _SHARE)) for row in index.tolist()]
        partners = [derive_seed(self.seed, int(self.ids[row]), draw, _PARTNER) % len(self) for row in index.tolist()]
        return torch.tensor(shares, dtype=torch.float32), torch.tensor(partners)

    def _generator(self, row: int, draw: int, *purpose: int) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, int(self.ids[row]), draw, *purpose))

    def _offset(self, row: int, draw: int, maximum: int) -> int:
        if self.window == "centre":
            return maximum // 2
        return derive_seed(self.seed, int(self.ids[row]), draw) % (maximum + 1)
