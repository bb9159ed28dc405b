"""Cut a prepared signal into the windows that a network takes."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Combination = Literal["mean", "max", "centre"]


def starts_of(time: int, length: int, combine: Combination) -> list[int]:
    """Return the first sample of each window of `length` samples of a signal.

    A longer signal has as few windows as cover all of it, at equal distances, so that they overlap. A shorter one is
    padded on both sides as in training, so that its window starts before it. combine: "centre" for the middle alone.
    """
    spare = time - length
    if spare <= 0:
        return [-(-spare // 2)]  # of an odd number, the smaller half is before
    if combine == "centre":
        return [spare // 2]
    count = math.ceil(time / length)
    return [round(number * spare / (count - 1)) for number in range(count)]


def cut(signal: NDArray[np.float32], starts: Sequence[int], length: int) -> NDArray[np.float32]:
    """Return windows of a signal (leads, time), (windows, leads, length); samples outside of it are 0."""
    windows = np.zeros((len(starts), signal.shape[0], length), np.float32)
    for window, start in zip(windows, starts, strict=True):
        inside = signal[:, max(start, 0) : start + length]
        window[:, max(-start, 0) : max(-start, 0) + inside.shape[1]] = inside
    return windows
