"""Signals held in memory and handed out in windows of one length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdkit import Batch, seed_from

Window = Literal["random", "centre"]


class Ecg(NamedTuple):
    """What a net may see of a record: signal (batch, 12, time), person (batch, 5).

    person is age/100, age known, female, male, sex known; what is not known is 0.
    """

    signal: Tensor
    person: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SignalSplit:
    """Records as a split: each sample is a window of `length` samples, a pure function of (seed, id, draw).

    signals: one float32 (12, time) array per record, times may differ.
    person: (records, 5) float32. labels: (records, classes) float32 of 0 and 1. ids: (records,) int64.
    window: "random" moves the window (or, in a record too short, the zero padding) with the draw; "centre" does not.
    """

    signals: Sequence[NDArray[np.float32]]
    person: Tensor
    labels: Tensor
    ids: Tensor
    length: int
    window: Window
    seed: int = 0

    def __len__(self) -> int:
        return len(self.signals)

    def batch(self, rows: Tensor | Sequence[int], draw: int) -> Batch:
        """Return the windows of these records, signal (rows, 12, length), in this draw."""
        index = torch.as_tensor(rows)
        leads = self.signals[int(index[0])].shape[0]
        windows = np.zeros((len(index), leads, self.length), dtype=np.float32)
        for place, row in enumerate(index.tolist()):
            self._fill(windows[place], row, draw)
        inputs = Ecg(torch.from_numpy(windows), self.person[index])
        return Batch(inputs, self.labels[index], self.ids[index], draw)

    def _fill(self, window: NDArray[np.float32], row: int, draw: int) -> None:
        signal = self.signals[row]
        spare = signal.shape[1] - self.length  # negative: the record is shorter than the window
        offset = self._offset(row, draw, abs(spare))
        if spare >= 0:
            window[:] = signal[:, offset : offset + self.length]
        else:
            window[:, offset : offset + signal.shape[1]] = signal

    def _offset(self, row: int, draw: int, most: int) -> int:
        if self.window == "centre":
            return most // 2
        return seed_from(self.seed, int(self.ids[row]), draw) % (most + 1)
