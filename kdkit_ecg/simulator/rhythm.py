"""Say when a heart beats, and what its atria do between the beats."""

from typing import NamedTuple

import numpy as np

from kdkit_ecg.simulator.heart import Heart, Kind
from kdkit_ecg.simulator.lead_projection import Array
from kdkit_ecg.simulator.randomness import RandomRange


class Beats(NamedTuple):
    """QRS onsets, s from the start of the record (also a little before and after it), and the kind of each beat."""

    onsets: Array
    kinds: tuple[Kind, ...]

    def of(self, kind: Kind) -> Array:
        """Return the onsets of the beats of this kind."""
        chosen: Array = self.onsets[np.array([each == kind for each in self.kinds])]
        return chosen


def beats(heart: Heart, duration: float, dice: RandomRange) -> Beats:
    """Return the beats of a record of this duration, in s."""
    gaps = _intervals(heart, duration, dice)
    first = -heart.interval * dice.random.random() - heart.interval
    onsets = first + np.concatenate([[0.0], np.cumsum(gaps)])
    kinds: list[Kind] = ["usual"] * len(onsets)
    for place, kind in _early_places(heart, onsets, duration, dice):
        kinds[place] = kind
        gap = onsets[place] - onsets[place - 1]
        # Early by a quarter or more, yet after the T wave of the beat before.
        coupling = min(max(gap * dice.within(easy=(0.56, 0.66), hard=(0.66, 0.78)), heart.qt + 0.04), 0.85 * gap)
        if kind == "atrial":  # resets the sinus node, so the pause after it is less than compensatory
            onsets[place:] -= gap - coupling
            onsets[place + 1 :] += dice.between(0.08, 0.2) * gap
        else:  # leaves the sinus node alone: a fully compensatory pause
            onsets[place] = onsets[place - 1] + coupling
    return Beats(onsets, tuple(kinds))


def _intervals(heart: Heart, duration: float, dice: RandomRange) -> Array:
    count = int(np.ceil(duration / heart.interval * 1.5)) + 5
    if heart.scatter > 0:  # fibrillation: no interval says anything about the next
        gaps = np.exp(heart.scatter * dice.random.standard_normal(count))
        gaps *= heart.interval / gaps[: max(1, int(duration / heart.interval))].mean()
        refractory: Array = np.maximum(gaps, 0.3)  # nothing gets through the node sooner
        return refractory
    breath = dice.between(3.5, 5.0)  # s per breath
    cycle = np.sin(2 * np.pi * (np.arange(count) * heart.interval / breath + dice.random.random()))
    seen = cycle[2 : max(4, int(duration / heart.interval))]  # the beats in the record swing as far as asked for
    regular: Array = heart.interval + heart.swing * (cycle - seen.mean()) / max(float(np.ptp(seen)), 1e-9)
    return regular


def _early_places(heart: Heart, onsets: Array, duration: float, dice: RandomRange) -> list[tuple[int, Kind]]:
    # The middle of the record, so that the pauses are seen, and a window that moves a little still shows them.
    inside = np.flatnonzero((onsets > 0.2 * duration) & (onsets < 0.8 * duration))
    places = inside[dice.random.integers(0, 3) :: 3]
    if len(places) < len(heart.early):
        places = inside[::2]
    most = int(dice.random.integers(max(2, len(heart.early)), 4))
    chosen = np.sort(dice.random.permutation(places)[:most])
    return [(int(place), heart.early[number % len(heart.early)]) for number, place in enumerate(chosen) if heart.early]


def atrial_activity(heart: Heart, times: Array, dice: RandomRange) -> Array:
    """Return the vector of fluttering or fibrillating atria, (3, time) in mV; 0 in any other heart."""
    if heart.atria == "fluttering":
        return _flutter(heart, times, dice)
    if heart.atria == "fibrillating":
        return _fibrillation(heart, times, dice)
    return np.zeros((3, len(times)))


def _flutter(heart: Heart, times: Array, dice: RandomRange) -> Array:
    # A saw-tooth from its first harmonics: band-limited, so that it does not alias at a low rate.
    phase = 2 * np.pi * (heart.atrial_rate / 60 * times + dice.random.random())
    tooth = sum(np.sin(order * phase) / order for order in range(1, 5))
    # Counter-clockwise around the tricuspid ring: negative in the inferior leads, positive in V1.
    direction = np.array([dice.between(-0.1, 0.2), -1.0, dice.between(0.3, 0.6)])
    return heart.atrial_size * direction[:, None] * tooth


def _fibrillation(heart: Heart, times: Array, dice: RandomRange) -> Array:
    parts = []
    for _ in range(4):  # wavelets, each of its own rate and direction, coming and going
        rate = heart.atrial_rate / 60 * dice.between(0.8, 1.2)
        drift = 0.8 * np.sin(2 * np.pi * (dice.between(0.1, 0.4) * times + dice.random.random()))
        swell = 1 + 0.5 * np.sin(2 * np.pi * (dice.between(0.1, 0.5) * times + dice.random.random()))
        wave = swell * np.sin(2 * np.pi * (rate * times + dice.random.random()) + drift)
        parts.append(dice.random.normal(0, (0.3, 0.5, 0.7))[:, None] * wave)
    waves: Array = heart.atrial_size * np.sum(parts, axis=0)
    return waves
