"""Describe one person's heart, and draw its beats as Gaussian waves of a vector in three dimensions.

The model is that of McSharry et al. (IEEE Trans Biomed Eng 50, 2003), in which each wave is a Gaussian, in its
three-dimensional form (Sameni et al., EURASIP J Adv Signal Process 2007), with times in seconds rather than phase,
so that an interval holds at any rate. A vector is (left, down, front) in mV.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdkit_ecg.simulator.lead_projection import FIELD, Array, twelve_leads

Vector = tuple[float, float, float]
Atria = Literal["sinus", "fibrillating", "fluttering", "silent"]
Kind = Literal["usual", "atrial", "ventricular"]

EDGE = 0.05  # where a QRS begins and ends: this part of its largest value, taken over all leads
_UNIT = np.linspace(-0.5, 1.5, 401)


class Waves(NamedTuple):
    """Gaussians: centre (waves,), standard deviations before and after it (waves,), all in s; vector (waves, 3), mV."""

    centre: Array
    rise: Array
    fall: Array
    vector: Array

    def vectors(self, times: Array) -> Array:
        """Return the heart's vector, (3, time) in mV, at these times in s."""
        lag = times - self.centre[:, None]
        width = np.where(lag < 0, self.rise[:, None], self.fall[:, None])
        return self.vector.T @ np.exp(-0.5 * np.square(lag / width))

    def repeated(self, onsets: Array, times: Array) -> Array:
        """Return the sum of the waves begun at each of these onsets, (3, time) in mV, at evenly spaced times in s."""
        total = np.zeros((3, len(times)))
        before = np.min(self.centre - 6 * self.rise)  # six standard deviations away, 15 parts in a billion are left
        after = np.max(self.centre + 6 * self.fall)
        for onset in onsets:
            start, stop = np.searchsorted(times, (onset + before, onset + after))
            total[:, start:stop] += self.vectors(times[start:stop] - onset)
        return total


class Force(NamedTuple):
    """One Gaussian of a QRS: its centre and width in parts of the QRS, its vector in any unit.

    main: its direction in the frontal plane is turned so that the whole QRS has the axis asked for.
    """

    at: float
    width: float
    vector: Vector
    main: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Qrs:
    """The ventricles' depolarisation.

    duration: s, between the points where it leaves and reaches EDGE. axis: of its area in the frontal plane, degrees.
    voltage: mV, the largest peak-to-peak value in a limb lead; the chest leads stay under its double.
    """

    forces: tuple[Force, ...]
    duration: float
    axis: float
    voltage: float

    def waves(self) -> Waves:
        """Return its Gaussians, in time from the QRS onset."""
        at, width = np.array([(force.at, force.width) for force in self.forces]).T
        vector = self._on_axis(width)
        unit = Waves(at, width, width, vector)
        leads = FIELD @ unit.vectors(_UNIT)
        above = np.flatnonzero(_over_edge(leads))
        start, stop = _UNIT[above[0]], _UNIT[above[-1]]
        limb, chest = np.split(np.ptp(twelve_leads(leads), axis=1), [6])
        scale = min(self.voltage / limb.max(), 2 * self.voltage / chest.max())
        pace = self.duration / (stop - start)
        return Waves((at - start) * pace, width * pace, width * pace, vector * scale)

    def _on_axis(self, width: Array) -> Array:
        vector = np.array([force.vector for force in self.forces])
        main = np.array([force.main for force in self.forces])
        size = np.hypot(vector[:, 0], vector[:, 1])
        area = np.sum((size * width)[main])  # of the main forces, and of the QRS as a whole
        target = area * np.array([np.cos(np.radians(self.axis)), np.sin(np.radians(self.axis))])
        others = (vector[:, :2] * width[:, None])[~main].sum(axis=0)
        vector[main, :2] = size[main, None] * (target - others) / area
        return vector


def _over_edge(leads: Array) -> NDArray[np.bool_]:
    power = np.sqrt(np.mean(np.square(leads), axis=0))
    above: NDArray[np.bool_] = power > EDGE * power.max()
    return above


@dataclass(frozen=True, slots=True, kw_only=True)
class Heart:
    """All that makes one record: times in s, rates per minute, vectors in mV.

    rate: ventricular. swing: largest minus smallest interval between beats, by breathing. scatter: relative standard
    deviation of the intervals, without order. atria: what they do; atrial_rate and atrial_size (mV) count where they
    flutter or fibrillate. early: kinds of beats that come early. spike: of a pacemaker, mV, 0 without one. pr, qtc
    (Bazett): intervals. t_turn: how much of the T wave's start points the other way. focus, focus_t: QRS and T of
    early ventricular beats.
    """

    rate: float
    swing: float
    scatter: float = 0.0
    atria: Atria = "sinus"
    atrial_rate: float = 0.0
    atrial_size: float = 0.0
    early: tuple[Kind, ...] = ()
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

    def beat(self, kind: Kind) -> Waves:
        """Return the waves of one beat, in time from its QRS onset."""
        if kind == "ventricular":
            return joined(self.focus.waves(), self._t(self.qt + 0.03, self.focus_t, 0.0))
        waves = joined(self.qrs.waves(), self._t(self.qt, self.t, self.t_turn))
        if kind == "atrial":  # an ectopic focus low in the atria activates them upwards
            return joined(waves, _p(min(self.pr, 0.13), (-0.6 * self.p[0], -0.9 * self.p[1], self.p[2])))
        return joined(waves, _p(self.pr, self.p)) if self.atria == "sinus" else waves

    def _t(self, end: float, vector: Vector, turn: float) -> Waves:
        # A Gaussian's steepest tangent meets the baseline two standard deviations from its centre: there the T ends.
        rise, fall = 0.15 * self.qt, 0.1 * self.qt
        size = np.array(vector)
        last = Waves(np.array([end - 2 * fall]), np.array([rise]), np.array([fall]), size[None])
        if turn == 0:
            return last
        first = Waves(last.centre - 0.2 * self.qt, last.fall, last.fall, -turn * size[None])
        return joined(first, Waves(last.centre, last.fall, last.fall, last.vector))


def joined(*waves: Waves) -> Waves:
    """Return all the waves as one."""
    return Waves(*(np.concatenate(part) for part in zip(*waves, strict=True)))


def _p(pr: float, vector: Vector) -> Waves:
    width = np.array([0.022])
    return Waves(2 * width - pr, width, width, np.array([vector]))


def scaled(vector: Vector, factor: float) -> Vector:
    """Return the vector times a factor."""
    return (vector[0] * factor, vector[1] * factor, vector[2] * factor)
