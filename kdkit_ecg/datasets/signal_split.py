"""Signals handed out in windows of one length, changed from draw to draw where training asks it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdkit import Batch, Split
from kdkit.utils.randomness import derive_seed
from kdkit_ecg.augmentations import Augmentation, Mixup

Window = Literal["random", "centre"]
Augmentations = tuple[Augmentation | Mixup, ...]

_CHANGE, _PARTNER, _SHARE = 1, 2, 3  # what a seed is for, beside the window: no two of them draw the same numbers


class Ecg(NamedTuple):
    """What a net may see of a record: signal (batch, 12, time), person (batch, 5).

    person is age/100, age known, female, male, sex known; what is not known is 0.
    """

    signal: Tensor
    person: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SignalSplit(Split):
    """Records as a split: each sample is a window of `length` samples, a pure function of (seed, id, draw).

    signals: one float32 (12, time) array per record, in memory or mapped, times may differ; rate in Hz.
    person: (records, 5) float32. labels: (records, classes) float32 of 0 and 1. ids: (records,) int64.
    window: "random" moves the window (or, in a record too short, the zero padding) with the draw; "centre" does not.
    groups: (records,) int64, the same number for records of one patient; None where each is of another.
    augment: what else changes with the draw, one after the other, within the record and not in its padding.
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

    parallel: ClassVar[bool] = True  # batches may be fetched by other processes, which on a GPU's side is worth it

    def __len__(self) -> int:
        return len(self.signals)

    def batch(self, rows: Tensor | Sequence[int], draw: int) -> Batch:
        """Return the windows of these records, signal (rows, 12, length), in this draw."""
        index = torch.as_tensor(rows)
        windows, person, labels = self._windows(index, draw), self.person[index], self.labels[index]
        if self.augment and isinstance(self.augment[-1], Mixup):
            own, partners = self._mixing(self.augment[-1], index, draw)
            windows = own[:, None, None] * windows + (1 - own[:, None, None]) * self._windows(partners, draw)
            person = own[:, None] * person + (1 - own[:, None]) * self.person[partners]
            labels = own[:, None] * labels + (1 - own[:, None]) * self.labels[partners]
        return Batch(Ecg(windows, person), labels, self.ids[index], draw)

    def _windows(self, index: Tensor, draw: int) -> Tensor:
        leads = self.signals[int(index[0])].shape[0]
        # Each window is copied once, into memory that is not cleared before: as fast as one gather, for any lengths.
        windows = np.empty((len(index), leads, self.length), dtype=np.float32)
        for place, row in enumerate(index.tolist()):
            self._fill(windows[place], row, draw)
        return torch.from_numpy(windows)

    def _fill(self, window: NDArray[np.float32], row: int, draw: int) -> None:
        signal = self.signals[row]
        spare = signal.shape[1] - self.length  # negative: the record is shorter than the window
        offset = self._offset(row, draw, abs(spare))
        if spare >= 0:
            window[:] = self._changed(signal[:, offset : offset + self.length], row, draw)
        else:
            end = offset + signal.shape[1]
            window[:, :offset] = 0
            window[:, offset:end] = self._changed(signal, row, draw)
            window[:, end:] = 0

    def _changed(self, signal: NDArray[np.float32], row: int, draw: int) -> NDArray[np.float32]:
        for place, change in enumerate(self.augment):
            if not isinstance(change, Mixup):
                signal = change(signal, self.rate, self._generator(row, draw, _CHANGE, place))
        return signal

    def _mixing(self, mixup: Mixup, index: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """Return the share that each sample keeps, (rows,) float32, and the rows of their partners, (rows,) int64."""
        own = [mixup.share(self._generator(row, draw, _SHARE)) for row in index.tolist()]
        partners = [derive_seed(self.seed, int(self.ids[row]), draw, _PARTNER) % len(self) for row in index.tolist()]
        return torch.tensor(own, dtype=torch.float32), torch.tensor(partners)

    def _generator(self, row: int, draw: int, *use: int) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, int(self.ids[row]), draw, *use))

    def _offset(self, row: int, draw: int, most: int) -> int:
        if self.window == "centre":
            return most // 2
        return derive_seed(self.seed, int(self.ids[row]), draw) % (most + 1)
