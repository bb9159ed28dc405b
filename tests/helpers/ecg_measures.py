"""Measure an ECG as a cardiologist would, from its samples and its QRS onsets, to verify the criteria of findings."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

I, II, III, AVR, AVL, AVF, V1, V2, V3, V4, V5, V6 = range(12)  # noqa: E741 - the lead's name
INDEPENDENT = [I, II, V1, V2, V3, V4, V5, V6]
TERRITORIES = ((II, III, AVF), (I, AVL, V5, V6), (V1, V2, V3, V4))
BEFORE = 0.4  # s from the start of a cut-out beat to its QRS onset


@dataclass(frozen=True)
class Strip:
    """signal: (12, time) in mV. onsets: s, of all QRS, at which it is cut into beats."""

    signal: np.ndarray
    rate: float
    onsets: np.ndarray

    @cached_property
    def peaks(self):
        """R peaks in s: the points of fastest change, at least 220 ms apart."""
        box = np.ones(int(0.012 * self.rate)) / int(0.012 * self.rate)
        smooth = [np.convolve(lead, box, mode="valid") for lead in self.signal[INDEPENDENT]]
        steep = np.square(np.diff(smooth, axis=1)).sum(axis=0)
        box = np.ones(int(0.08 * self.rate))
        energy = np.convolve(steep, box / len(box), mode="same")
        peaks = []
        for sample in np.argsort(-energy):
            if energy[sample] < 0.12 * energy.max():
                break
            if all(abs(sample - peak) > 0.22 * self.rate for peak in peaks):
                peaks.append(sample)
        return np.sort(peaks) / self.rate

    @cached_property
    def intervals(self):
        return np.diff(self.peaks)

    @cached_property
    def bpm(self):
        return 60 / np.mean(self.intervals)

    @cached_property
    def complete(self):
        """Indices of the beats that are, with their neighbours, inside the strip."""
        end = self.signal.shape[1] / self.rate
        return [index for index, onset in enumerate(self.onsets) if 1.0 < onset < end - 1.0]

    def premature(self):
        """Indices of the beats that come early, by the time since the previous beat."""
        gaps = np.diff(self.onsets)
        usual = np.median(gaps)
        return [index for index in self.complete if gaps[index - 1] < 0.82 * usual]

    def p_wave_correlation(self):
        """Mean correlation, from beat to beat, of the part of lead II in which a P wave would be."""
        correlations = np.corrcoef([self.cut(index).span(-0.2, -0.03)[II] for index in self.complete])
        # Without the diagonal, which is 1.
        return (correlations.sum() - len(correlations)) / (correlations.size - len(correlations))

    def cut(self, index):
        start = round((self.onsets[index] - BEFORE) * self.rate)
        return Beat(self.signal[:, start : start + int((BEFORE + 0.6) * self.rate)], self.rate)

    @cached_property
    def beat(self):
        """The median of the usual beats."""
        unusual = set(self.premature())
        unusual |= {index + 1 for index in unusual}  # the beat after a pause
        usual = [self.cut(index).leads for index in self.complete if index not in unusual]
        return Beat(np.median(usual, axis=0), self.rate)


class Beat:
    """leads: (12, time) in mV, from BEFORE its QRS onset; shifted to 0 just before the QRS."""

    def __init__(self, leads, rate):
        self.rate = rate
        level = leads[:, self._sample(-0.04, rate) : self._sample(-0.025, rate)].mean(axis=1, keepdims=True)
        self.leads = leads - level

    @staticmethod
    def _sample(seconds, rate):
        return round((BEFORE + seconds) * rate)

    def span(self, start, stop):
        return self.leads[:, self._sample(start, self.rate) : self._sample(stop, self.rate)]

    @cached_property
    def edges(self):
        """QRS onset and end, s: the points at which the RMS over leads rises over and falls under 5 % of its peak.

        It may be under 5 % for 12 ms in between, when a force is the opposite of the previous one.
        """
        size = np.sqrt(np.mean(np.square(self.leads[INDEPENDENT]), axis=0))
        start, stop = self._sample(0, self.rate), self._sample(0.22, self.rate)
        peak = start + int(np.argmax(size[start:stop]))
        above = np.flatnonzero(size > 0.05 * size[peak])
        runs = np.split(above, np.flatnonzero(np.diff(above) > 0.012 * self.rate) + 1)
        run = next(run for run in runs if run[0] <= peak <= run[-1])
        return run[0] / self.rate - BEFORE, min(run[-1], stop) / self.rate - BEFORE

    @property
    def width(self):
        return self.edges[1] - self.edges[0]

    @cached_property
    def qrs(self):
        return self.span(*self.edges)

    def qrs_window_of(self, beat):
        """The independent leads in one row, over the time of another beat's QRS."""
        return self.span(*beat.edges)[INDEPENDENT].ravel()

    @property
    def axis(self):
        area = self.qrs.sum(axis=1)
        return np.degrees(np.arctan2(area[AVF] * 2 / np.sqrt(3), area[I]))  # aVF is drawn at 0.87 of lead I's gain

    @property
    def p(self):
        """Height of the P wave in lead II (mV), and its onset before the QRS (s)."""
        before_qrs = self.span(-0.35, -0.02)[II]
        # A slope would move the top, so it is removed to locate it.
        slope = np.linspace(before_qrs[:10].mean(), before_qrs[-10:].mean(), len(before_qrs))
        top = int(np.argmax(np.abs(before_qrs - slope)))
        size = np.abs(before_qrs)
        first = top
        while first > 0 and size[first] > 0.14 * size[top]:
            first -= 1
        return float(before_qrs[top]), 0.35 - first / self.rate

    @property
    def pr(self):
        return self.p[1] + self.edges[0]

    @property
    def t(self):
        """(12,) the largest value after the QRS, with its sign, mV."""
        after_qrs = self.span(self.edges[1] + 0.03, 0.5)
        return np.take_along_axis(after_qrs, np.abs(after_qrs).argmax(axis=1)[:, None], axis=1)[:, 0]

    @property
    def qt(self):
        """From the QRS onset to the point at which the steepest tangent of the largest T wave meets the baseline, s."""
        lead = int(np.argmax(np.abs(self.t)))
        start = self.edges[1] + 0.03
        t_wave = self.span(start, 0.6)[lead] * np.sign(self.t[lead])
        top = int(np.argmax(t_wave))
        fall = np.diff(np.convolve(t_wave, np.ones(9) / 9, mode="same"))[top : top + int(0.15 * self.rate)]
        steep = int(np.argmin(fall))
        return start + (top + steep + t_wave[top + steep] / -fall[steep]) / self.rate - self.edges[0]

    def first_wave(self, lead):
        """Sign, width (s) and height (mV) of the first deflection of a lead's QRS over 0.03 mV."""
        values = self.qrs[lead]
        above = np.flatnonzero(np.abs(values) > 0.03)
        if not len(above):
            return 0, 0.0, 0.0
        sign = np.sign(values[above[0]])
        opposite = np.flatnonzero(values[above[0] :] * sign < 0)
        end = above[0] + opposite[0] if len(opposite) else len(values)
        return int(sign), end / self.rate, float(np.abs(values[:end]).max())


def bumps(values, depth):
    """Return the signs of a curve's successive turning points that differ by at least this depth."""
    turns, low, high, rising = [], values[0], values[0], 0
    for value in values:
        low, high = min(low, value), max(high, value)
        if rising >= 0 and value < high - depth:
            turns += [1] if high > values[0] + depth else []
            rising, low, high = -1, value, value
        elif rising <= 0 and value > low + depth:
            turns += [-1] if rising else []
            rising, low, high = 1, value, value
    return turns


def saw_tooth(strip):
    """Rate (per minute) and size (mV) of the best-fitting wave of 4 to 10 Hz outside QRS and T, in aVF."""
    times = np.arange(strip.signal.shape[1]) / strip.rate
    since = times - strip.onsets[np.searchsorted(strip.onsets, times, side="right") - 1]
    until = strip.onsets[np.minimum(np.searchsorted(strip.onsets, times), len(strip.onsets) - 1)] - times
    # Outside QRS and T; at a fast rate outside QRS alone, or nothing would be left.
    quiet = (since > 0.3) & (until > 0.02) if np.median(np.diff(strip.onsets)) > 0.5 else since > 0.12
    best = (0.0, 0.0)
    for hertz in np.arange(4, 10, 0.05):
        basis = np.stack([np.sin(2 * np.pi * hertz * times), np.cos(2 * np.pi * hertz * times), times * 0 + 1])[
            :, quiet
        ]
        weights = np.linalg.lstsq(basis.T, strip.signal[AVF, quiet], rcond=None)[0]
        best = max(best, (float(np.hypot(*weights[:2])), 60 * hertz))
    return best[1], best[0]
