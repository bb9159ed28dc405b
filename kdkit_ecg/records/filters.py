"""Resample, band-pass filter and scale signals: pure functions of (leads, time) arrays."""

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kdkit import DataError
from kdkit_ecg.records.source import Signal

# scipy.signal takes most of a second to import, so it is imported late: `kdkit list` and checks do not need it.

MAX_RATIO = 100_000  # of two sampling rates; a header that needs a larger one has a wrong rate
# How much larger a signal may become. A header may state any rate, and a wrong rate in a small file must not fill the
# memory.
MAX_UPSAMPLING = 50
MAX_FILTER = 500_000  # the numerator of the ratio: the polyphase filter has 20 times as many numbers
BAND = (0.5, 47.0)  # Hz, of the band-pass by default
ORDER = 3  # of the band-pass
PADDING = 6 * ORDER + 3  # samples by which the band-pass extends a signal at each end
KAISER_BETA = 5.0  # of the window of the resampling
FLAT = 1e-6  # mV: a lead with less deviation is disconnected; what remains is the rounding error of a filter


def resample(signal: Signal, rate: float, to: float) -> Signal:
    """Resample a signal from `rate` to `to` Hz without aliasing: (leads, time) -> (leads, ceil(time * to / rate)).

    Polyphase filtering by `rate_ratio` in float64, with scipy's Kaiser window. The line from the first to the last
    sample is subtracted before and added back afterwards.
    """
    ratio = rate_ratio(rate, to)
    if ratio == 1:
        return signal
    from scipy.signal import resample_poly

    # scipy continues a signal with zeros, which would pull its ends to 0. Its filter changes a constant by up to a
    # thousandth, in a pattern that a z-score would take for the signal of a flat lead.
    time, first = signal.shape[1], signal[:, :1]
    slope = (signal[:, -1:] - first) / max(1, time - 1)  # per sample, (leads, 1)
    rest = signal - (first + slope * np.arange(time))
    lowpass = _lowpass(max(ratio.numerator, ratio.denominator))
    resampled: Signal = resample_poly(rest, ratio.numerator, ratio.denominator, axis=1, window=lowpass)
    resampled += first + slope * (np.arange(resampled.shape[1]) / float(ratio))
    return resampled


@lru_cache(maxsize=2)  # the records of a data set have few rates; the largest filter has 80 MB
def _lowpass(most: int) -> NDArray[np.float64]:
    """Return the default filter of `resample_poly`. most: the larger number of the ratio.

    For a ratio such as 18823 / 73240, computing it takes ten times as long as resampling a record.
    """
    from scipy.signal import firwin

    lowpass: NDArray[np.float64] = firwin(20 * most + 1, 1 / most, window=("kaiser", KAISER_BETA))
    return lowpass


def resample_linear(signal: Signal, rate: float, to: float) -> Signal:
    """Resample a signal as the authors of LRH-Net do: (leads, time) -> (leads, floor(time * to / rate)).

    Linear interpolation between two grids that both include their end point, so time is stretched by one sample. There
    is no anti-aliasing filter. Only use it to reproduce the numbers of the paper.
    """
    ratio = rate_ratio(rate, to)
    if ratio == 1:
        return signal
    time = signal.shape[1]
    length = int(time * ratio)
    source = np.linspace(0, time, time) / rate
    target = np.linspace(0, length, length) / to  # not arange: the step is length / (length - 1) samples
    return np.stack([np.interp(target, source, lead) for lead in signal]).astype(signal.dtype)


def bandpass(signal: Signal, rate: float, low: float, high: float) -> Signal:
    """Filter a signal to `low`..`high` Hz with zero phase: (leads, time) -> (leads, time), float64.

    A Butterworth filter of ORDER in second-order sections, designed for the true rate, run forwards and backwards.
    Raises DataError if the band does not fit below rate / 2.
    """
    if not 0 < low < high < rate / 2:
        raise DataError(f"a band of {low:g} to {high:g} Hz does not fit between 0 and half the rate, {rate / 2:g} Hz")
    from scipy.signal import butter, sosfiltfilt

    # Second-order sections: the polynomial form is numerically unstable for a low edge this far below the rate.
    sections = butter(ORDER, [low, high], "bandpass", fs=rate, output="sos")
    filtered: Signal = sosfiltfilt(sections, signal, axis=1, padlen=min(PADDING, signal.shape[1] - 1))
    return filtered


def zscore(signal: Signal) -> Signal:
    """Scale each lead to mean 0 and standard deviation 1, flat leads to 0: (leads, time) -> (leads, time)."""
    wide = signal.astype(np.float64)  # a mean of many float32 samples would lose digits
    deviation = wide.std(axis=1, keepdims=True)
    flat = deviation < FLAT
    scaled: Signal = np.where(flat, 0, wide - wide.mean(axis=1, keepdims=True)) / np.where(flat, 1, deviation)
    return scaled.astype(signal.dtype)


def flat_leads(signal: Signal) -> NDArray[np.bool_]:
    """Return whether each lead is flat, (leads, time) -> (leads,). A filter leaves deviations other than exactly 0."""
    return np.array([lead.std(dtype=np.float64) < FLAT for lead in signal])


def rate_ratio(rate: float, to: float) -> Fraction:
    """Return to / rate. Rates are decimal numbers in a header, so 360.1 is 3601/10 and not the nearest float.

    It is exact up to a denominator of MAX_RATIO, and otherwise off by at most 5e-6 of it: a record of a minute then
    becomes 0.3 ms too long or too short.
    Raises DataError if a rate is not above 0, if the two are too far apart to resample, or if resampling would take too
    much memory.
    """
    if not (0 < rate < math.inf and 0 < to < math.inf):
        raise DataError(f"expected finite rates above 0 Hz, got {rate:g} and {to:g}")
    # Through str: the Fraction of a float would have a denominator of a power of two.
    ratio = (Fraction(str(to)) / Fraction(str(rate))).limit_denominator(MAX_RATIO)
    if not 0 < ratio <= MAX_RATIO:
        raise DataError(
            f"{rate:g} Hz and {to:g} Hz are more than {MAX_RATIO:,} times apart; is one of the rates wrong?"
        )
    if ratio > MAX_UPSAMPLING or ratio.numerator > MAX_FILTER:
        raise DataError(
            f"resampling from {rate:g} Hz to {to:g} Hz, by {ratio}, would take too much memory (at most "
            f"{MAX_UPSAMPLING} times the samples, and a numerator of {MAX_FILTER:,}); is one of the rates wrong?"
        )
    return ratio
