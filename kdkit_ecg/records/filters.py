"""Change the rate, the band and the scale of signals: pure functions of (leads, time) arrays."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError

# scipy.signal takes most of a second to import, which `kdkit list` and every check would pay: it is imported late.

Signal = NDArray[np.floating[Any]]

MOST = 100_000  # by what number a rate may be multiplied or divided: a header that asks for more has a wrong rate
FLAT = 1e-6  # mV: a lead that stays within a nanovolt is a lead left off, with the rounding a filter leaves on it


def resample(signal: Signal, rate: float, to: float) -> Signal:
    """Return the signal at another rate (both Hz), alias-free: (leads, time) -> (leads, ceil(time * to / rate)).

    Polyphase with scipy's Kaiser window; the ratio is the exact rational of the two decimal numbers.
    """
    ratio = ratio_of(rate, to)
    if ratio == 1:
        return signal
    from scipy.signal import resample_poly

    resampled: Signal = resample_poly(signal, ratio.numerator, ratio.denominator, axis=1)
    return resampled


def resample_linear(signal: Signal, rate: float, to: float) -> Signal:
    """Return the signal as LRH-Net's authors resample it: (leads, time) -> (leads, floor(time * to / rate)).

    Linear interpolation between grids that both reach their end, so that time is stretched by a sample; nothing
    keeps frequencies above to / 2 out. For repeating the paper's numbers only.
    """
    ratio = ratio_of(rate, to)
    if ratio == 1:
        return signal
    time = signal.shape[1]
    length = int(time * ratio)
    source = np.linspace(0, time, time) / rate
    target = np.linspace(0, length, length) / to
    return np.stack([np.interp(target, source, lead) for lead in signal]).astype(signal.dtype)


def bandpass(signal: Signal, rate: float, low: float, high: float, order: int = 3) -> Signal:
    """Return the signal between `low` and `high` Hz, without shift in time: (leads, time) -> (leads, time), float64.

    A Butterworth filter of this order as second-order sections at the true rate, run forwards and backwards.
    Raises DataError where the band does not fit below rate / 2.
    """
    if not 0 < low < high < rate / 2:
        raise DataError(f"a band of {low:g} to {high:g} Hz does not fit between 0 and half the rate, {rate / 2:g} Hz")
    from scipy.signal import butter, sosfiltfilt

    sections = butter(order, [low, high], "bandpass", fs=rate, output="sos")
    filtered: Signal = sosfiltfilt(sections, signal, axis=1, padlen=min(6 * order + 3, signal.shape[1] - 1))
    return filtered


def zscore(signal: Signal) -> Signal:
    """Return each lead with mean 0 and standard deviation 1, flat leads as 0: (leads, time) -> (leads, time)."""
    wide = signal.astype(np.float64)
    deviation = wide.std(axis=1, keepdims=True)
    flat = deviation < FLAT
    scaled: Signal = np.where(flat, 0, wide - wide.mean(axis=1, keepdims=True)) / np.where(flat, 1, deviation)
    return scaled.astype(signal.dtype)


def ratio_of(rate: float, to: float) -> Fraction:
    """Return to / rate; rates are decimals in a header, so 360.1 means 3601/10 and not the nearest float.

    Raises DataError where a rate is not above 0, or the two are too far apart to resample.
    """
    if not (0 < rate < math.inf and 0 < to < math.inf):
        raise DataError(f"rates are finite and above 0 Hz, but came as {rate:g} and {to:g}")
    ratio = (Fraction(str(to)) / Fraction(str(rate))).limit_denominator(MOST)
    if not 0 < ratio <= MOST:
        raise DataError(f"{rate:g} Hz and {to:g} Hz are more than {MOST:,} times apart; is one of the rates wrong?")
    return ratio
