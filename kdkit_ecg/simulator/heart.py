"""Describe one person's heart, and compute its beats as Gaussian waves of a three-dimensional vector.

Each wave is a Gaussian as in McSharry et al. (IEEE Trans Biomed Eng 50, 2003), in its three-dimensional form (Sameni
et al., EURASIP J Adv Signal Process 2007). Times are in seconds instead of phase, so that intervals are the same at
any heart rate. A vector is (left, down, front) in mV.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from kdkit_ecg.simulator.lead_projection import LEAD_FIELD, Array, twelve_leads

Vector = tuple[float, float, float]
Atria = Literal["sinus", "fibrillating", "fluttering", "silent"]
BeatKind = Literal["usual", "atrial", "ventricular"]

QRS_EDGE = 0.05  # a QRS begins and ends at this fraction of its largest value, taken over all leads
_QRS_GRID = np.linspace(-0.5, 1.5, 401)  # in parts of the QRS; its edges are measured on this grid


class Waves(NamedTuple):
    """Gaussians: centre (waves,), standard deviations before and after it (waves,), all in s; vector (waves, 3), mV."""

    centre: Array
    rise: Array
    fall: Array
    vector: Array

    def vectors(self, times: Array) -> Array:
        """Return the heart's vector, (3, time) in mV, at these times in s."""
        lag = times - self.centre[:, None]  # (waves, time)
        width = np.where(lag < 0, self.rise[:, None], self.fall[:, None])
        return self.vector.T @ np.exp(-0.5 * np.square(lag / width))

    def repeated(self, onsets: Array, times: Array) -> Array:
        """Return the sum of the waves begun at each of these onsets, (3, time) in mV, at evenly spaced times in s."""
        total = np.zeros((3, len(times)))
        if not len(onsets):
            return total
        before = np.min(self.centre - 6 * self.rise)  # at six standard deviations a Gaussian has fallen to 1.5e-8
        after = np.max(self.centre + 6 * self.fall)
        starts, stops = np.searchsorted(times, onsets + before), np.searchsorted(times, onsets + after)
        # All beats at once, because a beat has few samples.
        ends = np.cumsum(stops - starts)
        lags = [times[start:stop] - onset for start, stop, onset in zip(starts, stops, onsets, strict=True)]
        vectors = self.vectors(np.concatenate(lags))
        for start, stop, end in zip(starts, stops, ends, strict=True):
            total[:, start:stop] += vectors[:, end - (stop - start) : end]
        return total


class Force(NamedTuple):
    """One Gaussian of a QRS: its centre and width in parts of the QRS, its vector in any unit.

    main: the direction in the frontal plane is turned so that the whole QRS has the required axis.
    """

    centre: float
    width: float
    vector: Vector
    main: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Qrs:
    """The depolarisation of the ventricles.

    duration: s, between the points where it leaves and reaches QRS_EDGE. axis: of its area in the frontal plane,
    degrees. voltage: mV, the largest peak-to-peak value in a limb lead; chest leads have at most twice that.
    """

    forces: tuple[Force, ...]
    duration: float
    axis: float
    voltage: float

    def waves(self) -> Waves:
        """Return its Gaussians, in time from the QRS onset."""
        centre, width = np.array([(force.centre, force.width) for force in self.forces]).T
        vector = self._on_axis(width)
        # Computed on a unit grid first, to measure the duration and the voltage of all forces together.
        leads = LEAD_FIELD @ Waves(centre, width, width, vector).vectors(_QRS_GRID)  # (8, 401)
        power = np.sqrt(np.mean(np.square(leads), axis=0))
        above = np.flatnonzero(power > QRS_EDGE * power.max())
        start, stop = _QRS_GRID[above[0]], _QRS_GRID[above[-1]]
        limb, chest = np.split(np.ptp(twelve_leads(leads), axis=1), [6])
        scale = min(self.voltage / limb.max(), 2 * self.voltage / chest.max())
        pace = self.duration / (stop - start)  # s per part of the QRS
        return Waves((centre - start) * pace, width * pace, width * pace, vector * scale)

    def _on_axis(self, width: Array) -> Array:
        """Return the forces' vectors, (forces, 3), with the main ones turned so that the whole area has the axis."""
        vector = np.array([force.vector for force in self.forces])
        main = np.array([force.main for force in self.forces])
        size = np.hypot(vector[:, 0], vector[:, 1])
        # A Gaussian's area is proportional to its height times its width.
        area = np.sum((size * width)[main])
        target = area * np.array([np.cos(np.radians(self.axis)), np.sin(np.radians(self.axis))])
        minor = (vector[:, :2] * width[:, None])[~main].sum(axis=0)
        vector[main, :2] = size[main, None] * (target - minor) / area
        return vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Heart:
    """All parameters of one record: times in s, rates per minute, vectors in mV.

    rate: of the ventricles.
    swing: largest minus smallest interval between beats, varied by breathing.
    scatter: relative standard deviation of intervals that vary without order.
    atria: their rhythm; atrial_rate and atrial_size (mV) matter only if they flutter or fibrillate.
    early: the kinds of premature beats.
    spike: of a pacemaker, mV; 0 without one.
    pr, qtc: the PR interval, and the QT interval corrected by Bazett's formula.
    p, t: the vectors of the P wave and the T wave.
    t_turn: the size of an opposite first half of the T wave, relative to the second.
    focus, focus_t: QRS and T wave of ventricular premature beats.
    """

    rate: float
    swing: float
    scatter: float = 0.0
    atria: Atria = "sinus"
    atrial_rate: float = 0.0
    atrial_size: float = 0.0
    early: tuple[BeatKind, ...] = ()
    spike: float = 0.0
    pr: float
    qrs: Qrs
    qtc: float
    p: Vector
    t: Vector
    t_turn: float = 0.0
    focus: Qrs
    focus_t: Vector

    @property
    def interval(self) -> float:
        """The mean time between two beats, s."""
        return 60.0 / self.rate

    @property
    def qt(self) -> float:
        """QT interval, s, by Bazett's formula from the mean interval."""
        return float(self.qtc * np.sqrt(self.interval))

    def beat(self, kind: BeatKind) -> Waves:
        """Return the waves of one beat, in time from its QRS onset."""
        if kind == "ventricular":  # no P wave, and T ends a little later
            return concatenated(self.focus.waves(), self._t_waves(self.qt + 0.03, self.focus_t, 0.0))
        waves = concatenated(self.qrs.waves(), self._t_waves(self.qt, self.t, self.t_turn))
        if kind == "atrial":  # an ectopic focus low in the atria activates them upwards
            upwards = (-0.6 * self.p[0], -0.9 * self.p[1], self.p[2])
            return concatenated(waves, _p_wave(min(self.pr, 0.13), upwards))
        return concatenated(waves, _p_wave(self.pr, self.p)) if self.atria == "sinus" else waves

    def _t_waves(self, end: float, vector: Vector, turn: float) -> Waves:
        # T ends where its steepest tangent meets the baseline: for a Gaussian, two standard deviations from the centre.
        rise, fall = 0.15 * self.qt, 0.1 * self.qt
        size = np.array(vector)
        last = Waves(np.array([end - 2 * fall]), np.array([rise]), np.array([fall]), size[None])
        if turn == 0:
            return last
        first = Waves(last.centre - 0.2 * self.qt, last.fall, last.fall, -turn * size[None])
        return concatenated(first, Waves(last.centre, last.fall, last.fall, last.vector))


def concatenated(*waves: Waves) -> Waves:
    """Return all Gaussians in one Waves."""
    return Waves(*(np.concatenate(fields) for fields in zip(*waves, strict=True)))


def _p_wave(pr: float, vector: Vector) -> Waves:
    width = np.array([0.022])  # two standard deviations before the centre, the wave begins: at -pr
    return Waves(2 * width - pr, width, width, np.array([vector]))


def scaled(vector: Vector, factor: float) -> Vector:
    """Return the vector times a factor."""
    return (vector[0] * factor, vector[1] * factor, vector[2] * factor)
