"""Make record number `id` of a simulated clinic: who, what is found, and the signal that shows it."""

from dataclasses import dataclass

import numpy as np

from kdkit.utils.randomness import derive_seed
from kdkit_ecg.simulator.findings import CONDITIONS
from kdkit_ecg.simulator.heart import Heart, Waves
from kdkit_ecg.simulator.heart_sampler import healthy_heart
from kdkit_ecg.simulator.lead_projection import FIELD, Array, twelve_leads
from kdkit_ecg.simulator.noise import electrode_noise
from kdkit_ecg.simulator.patients import Patient, draw_patient
from kdkit_ecg.simulator.randomness import RandomRange
from kdkit_ecg.simulator.rhythm import Beats, atrial_activity, beats

_PERSON, _HEART, _RHYTHM, _NOISE = range(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """signal: (12, time) in mV. clean: the same without noise. beats: the QRS onsets, s, and kinds."""

    signal: Array
    clean: Array
    patient: Patient
    beats: Beats


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulator:
    """A clinic whose record `id` is a pure function of (seed, id), whatever was made before it.

    rate: Hz. length: samples. difficulty: 0 (clear findings, little noise) to 1 (borderline findings, much noise).
    At another rate or difficulty the same persons come with the same findings.
    """

    seed: int
    rate: float
    length: int
    difficulty: float

    def patient(self, id: int) -> Patient:
        """Return who comes and what will be found, without making the signal."""
        return draw_patient(self._dice(id, _PERSON))

    def record(self, id: int) -> Record:
        """Return the record of this number."""
        patient = self.patient(id)
        heart = heart_with(patient.findings, self._dice(id, _HEART))
        times = np.arange(self.length) / self.rate
        dice = self._dice(id, _RHYTHM)
        beating = beats(heart, self.length / self.rate, dice)
        clean = FIELD @ (_beating(heart, beating, times, self.rate) + atrial_activity(heart, times, dice))
        noise = electrode_noise(times, self.rate, self._dice(id, _NOISE))
        # Leads are derived from electrodes, noise and all, so Einthoven's law holds for what is measured, too.
        return Record(signal=twelve_leads(clean + noise), clean=twelve_leads(clean), patient=patient, beats=beating)

    def _dice(self, id: int, what: int) -> RandomRange:
        return RandomRange(np.random.default_rng(derive_seed(self.seed, id, what)), self.difficulty)


def heart_with(findings: frozenset[str], dice: RandomRange) -> Heart:
    """Return a healthy heart, changed by each of the findings in turn."""
    heart = healthy_heart(dice)
    for name, condition in CONDITIONS.items():
        if name in findings:
            heart = condition(heart, dice)
    return heart


def _beating(heart: Heart, beating: Beats, times: Array, rate: float) -> Array:
    total = np.zeros((3, len(times)))
    for kind in ("usual", *heart.early):
        total += heart.beat(kind).repeated(beating.of(kind), times)
    if heart.spike > 0:
        # A spike lasts under 2 ms: drawn half a sample wide at least, as a recorder's filter would, it is never missed.
        width = np.array([max(0.001, 0.5 / rate)])
        spike = Waves(np.array([-0.02]), width, width, heart.spike * np.array([[0.5, 0.7, 0.4]]))
        total += spike.repeated(beating.onsets, times)
    return total
