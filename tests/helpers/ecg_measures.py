"""Read an ECG as a cardiologist would: each of the 24 criteria, measured on samples and on QRS onsets alone."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

I, II, III, AVR, AVL, AVF, V1, V2, V3, V4, V5, V6 = range(12)  # noqa: E741 - the lead's name
INDEPENDENT = [I, II, V1, V2, V3, V4, V5, V6]
TERRITORIES = ((II, III, AVF), (I, AVL, V5, V6), (V1, V2, V3, V4))
BEFORE = 0.4  # s that a cut-out beat begins before its QRS onset


@dataclass(frozen=True)
class Strip:
    """signal: (12, time) in mV. onsets: s, of all QRS, where it is cut into beats."""

    signal: np.ndarray
    rate: float
    onsets: np.ndarray

    @cached_property
    def peaks(self):
        """R peaks in s, found where the leads change fastest."""
        box = np.ones(int(0.012 * self.rate)) / int(0.012 * self.rate)
        smooth = [np.convolve(lead, box, mode="valid") for lead in self.signal[INDEPENDENT]]
        steep = np.square(np.diff(smooth, axis=1)).sum(axis=0)
        box = np.ones(int(0.08 * self.rate))
        energy = np.convolve(steep, box / len(box), mode="same")
        found = []
        for place in np.argsort(-energy):
            if energy[place] < 0.12 * energy.max():
                break
            if all(abs(place - other) > 0.22 * self.rate for other in found):
                found.append(place)
        return np.sort(found) / self.rate

    @cached_property
    def intervals(self):
        return np.diff(self.peaks)

    @cached_property
    def bpm(self):
        return 60 / np.mean(self.intervals)

    @cached_property
    def whole(self):
        """The onsets of beats of which all is in the strip, and of those before and after."""
        end = self.signal.shape[1] / self.rate
        return [place for place, onset in enumerate(self.onsets) if 1.0 < onset < end - 1.0]

    def early(self):
        """Places of the beats that come early, by the time since the one before."""
        gaps = np.diff(self.onsets)
        usual = np.median(gaps)
        return [place for place in self.whole if gaps[place - 1] < 0.82 * usual]

    def alike_before_qrs(self):
        """Mean correlation, from beat to beat, of what stands in lead II where a P wave would."""
        seen = np.corrcoef([self.cut(place).span(-0.2, -0.03)[II] for place in self.whole])
        return (seen.sum() - len(seen)) / (seen.size - len(seen))

    def cut(self, place):
        start = round((self.onsets[place] - BEFORE) * self.rate)
        return Beat(self.signal[:, start : start + int((BEFORE + 0.6) * self.rate)], self.rate)

    @cached_property
    def beat(self):
        """The median of the usual beats."""
        odd = set(self.early())
        odd |= {place + 1 for place in odd}
        return Beat(np.median([self.cut(place).leads for place in self.whole if place not in odd], axis=0), self.rate)


class Beat:
    """leads: (12, time) in mV, from BEFORE its QRS onset on; level just before the QRS."""

    def __init__(self, leads, rate):
        self.rate = rate
        level = leads[:, self._at(-0.04, rate) : self._at(-0.025, rate)].mean(axis=1, keepdims=True)
        self.leads = leads - level

    @staticmethod
    def _at(seconds, rate):
        return round((BEFORE + seconds) * rate)

    def span(self, start, stop):
        return self.leads[:, self._at(start, self.rate) : self._at(stop, self.rate)]

    @cached_property
    def edges(self):
        """QRS onset and end, s: where the leads' common size rises over and falls under 5 % of its peak.

        It may fall under it for 12 ms in between, where a force is the opposite of the one before.
        """
        size = np.sqrt(np.mean(np.square(self.leads[INDEPENDENT]), axis=0))
        start, stop = self._at(0, self.rate), self._at(0.22, self.rate)
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

    def qrs_like(self, other):
        """All leads in one row, over the time in which the other beat has its QRS."""
        return self.span(*other.edges)[INDEPENDENT].ravel()

    @property
    def axis(self):
        area = self.qrs.sum(axis=1)
        return np.degrees(np.arctan2(area[AVF] * 2 / np.sqrt(3), area[I]))  # aVF is drawn at 0.87 of lead I's gain

    @property
    def p(self):
        """Height of the P wave in lead II (mV), and its onset before the QRS (s); height 0 where nothing stands out."""
        seen = self.span(-0.35, -0.02)[II]
        seen = seen - np.linspace(seen[:10].mean(), seen[-10:].mean(), len(seen))
        top = int(np.argmax(np.abs(seen)))
        size = np.abs(self.span(-0.35, -0.02)[II])
        first = top
        while first > 0 and size[first] > 0.14 * size[top]:
            first -= 1
        return float(self.span(-0.35, -0.02)[II][top]), 0.35 - first / self.rate

    @property
    def pr(self):
        return self.p[1] + self.edges[0]

    @property
    def t(self):
        """(12,) the largest value after the QRS, with its sign, mV."""
        seen = self.span(self.edges[1] + 0.03, 0.5)
        return np.take_along_axis(seen, np.abs(seen).argmax(axis=1)[:, None], axis=1)[:, 0]

    @property
    def qt(self):
        """From the QRS onset to where the steepest tangent of the largest T wave meets the baseline, s."""
        lead = int(np.argmax(np.abs(self.t)))
        start = self.edges[1] + 0.03
        seen = self.span(start, 0.6)[lead] * np.sign(self.t[lead])
        top = int(np.argmax(seen))
        fall = np.diff(np.convolve(seen, np.ones(9) / 9, mode="same"))[top : top + int(0.15 * self.rate)]
        steep = int(np.argmin(fall))
        return start + (top + steep + seen[top + steep] / -fall[steep]) / self.rate - self.edges[0]

    def first_wave(self, lead):
        """Sign, width (s) and height (mV) of the first deflection of a lead's QRS over 0.03 mV."""
        values = self.qrs[lead]
        begun = np.flatnonzero(np.abs(values) > 0.03)
        if not len(begun):
            return 0, 0.0, 0.0
        sign = np.sign(values[begun[0]])
        turned = np.flatnonzero(values[begun[0] :] * sign < 0)
        end = begun[0] + turned[0] if len(turned) else len(values)
        return int(sign), end / self.rate, float(np.abs(values[:end]).max())


def bumps(values, depth):
    """Return the signs of a curve's successive turning points that stand out by this depth from each other."""
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
    quiet = (since > 0.3) & (until > 0.02) if np.median(np.diff(strip.onsets)) > 0.5 else since > 0.12
    best = (0.0, 0.0)
    for hertz in np.arange(4, 10, 0.05):
        basis = np.stack([np.sin(2 * np.pi * hertz * times), np.cos(2 * np.pi * hertz * times), times * 0 + 1])[
            :, quiet
        ]
        weights = np.linalg.lstsq(basis.T, strip.signal[AVF, quiet], rcond=None)[0]
        best = max(best, (float(np.hypot(*weights[:2])), 60 * hertz))
    return best[1], best[0]
