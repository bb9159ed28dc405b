"""Simulate record number `id`: its patient, the findings, and a signal that shows them."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kdkit.utils.seeds import derive_seed
from kdkit_ecg.simulator.findings import FINDINGS
from kdkit_ecg.simulator.heart import Heart, Waves
from kdkit_ecg.simulator.heart_sampler import healthy_heart
from kdkit_ecg.simulator.lead_projection import LEAD_FIELD, Array, twelve_leads
from kdkit_ecg.simulator.noise import electrode_noise
from kdkit_ecg.simulator.patients import Patient, sample_patient
from kdkit_ecg.simulator.randomness import RangeSampler
from kdkit_ecg.simulator.rhythm import Beats, atrial_activity, sample_beats

# Independent random streams of one record, so that drawing a patient alone gives the same patient.
_PATIENT, _HEART, _RHYTHM, _NOISE = range(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRecord:
    """A record. signal: (12, time) in mV. clean: the signal without noise. beats: the QRS onsets, s, and kinds."""

    signal: Array
    clean: Array
    patient: Patient
    beats: Beats


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulator:
    """A simulated clinic whose record `id` is a pure function of (seed, id), whatever the order of the records.

    rate: Hz. length: samples. difficulty: 0 (clear findings, little noise) to 1 (borderline findings, much noise).
    At another rate or difficulty the patients and their findings stay the same.
    """

    seed: int
    rate: float
    length: int
    difficulty: float

    def patient(self, id: int) -> Patient:
        """Return the patient of this record and the findings, without the cost of a signal."""
        return sample_patient(self._sampler(id, _PATIENT))

    def record(self, id: int) -> SimulatedRecord:
        """Return the record of this number."""
        patient = self.patient(id)
        heart = heart_with(patient.findings, self._sampler(id, _HEART))
        times = np.arange(self.length) / self.rate
        sampler = self._sampler(id, _RHYTHM)
        beats = sample_beats(heart, self.length / self.rate, sampler)
        vectors = beat_waves(heart, beats, times, self.rate) + atrial_activity(heart, times, sampler)  # (3, time)
        clean = LEAD_FIELD @ vectors  # (8, time)
        noise = electrode_noise(times, self.rate, self._sampler(id, _NOISE))
        # The other leads are derived from the noisy ones, so Einthoven's law holds for the measured signal, too.
        signal = twelve_leads(clean + noise)
        return SimulatedRecord(signal=signal, clean=twelve_leads(clean), patient=patient, beats=beats)

    def _sampler(self, id: int, stream: int) -> RangeSampler:
        return RangeSampler(np.random.default_rng(derive_seed(self.seed, id, stream)), self.difficulty)


class Chunk(NamedTuple):
    """Records that one process simulates at a time. split: the name of their split."""

    simulator: Simulator
    ids: range
    split: str


def simulate(chunk: Chunk) -> list[tuple[Array, Patient]]:
    """Return the signals and patients of a chunk, in a process that imports this module and not torch."""
    return [(record.signal, record.patient) for record in map(chunk.simulator.record, chunk.ids)]


def heart_with(findings: frozenset[str], sampler: RangeSampler) -> Heart:
    """Return a healthy heart, changed by each of the findings in the order of FINDINGS."""
    heart = healthy_heart(sampler)
    for name, change in FINDINGS.items():
        if name in findings:
            heart = change(heart, sampler)
    return heart


def beat_waves(heart: Heart, beats: Beats, times: Array, rate: float) -> Array:
    """Return the vector of all beats with their pacing spikes, (3, time) in mV."""
    total = np.zeros((3, len(times)))
    for kind in ("usual", *heart.early):
        total += heart.beat(kind).repeated(beats.onsets_of(kind), times)
    if heart.spike > 0:
        # A spike lasts under 2 ms. At least half a sample wide, as after a recorder's filter, it is never missed.
        width = np.array([max(0.001, 0.5 / rate)])
        spike = Waves(np.array([-0.02]), width, width, heart.spike * np.array([[0.5, 0.7, 0.4]]))
        total += spike.repeated(beats.onsets, times)
    return total
