"""Patients have plausible combinations of findings, ages and sexes."""

from collections import Counter

import numpy as np
import pytest

from kdkit_ecg.labels import scored_classes
from kdkit_ecg.simulator.patients import sample_patient
from kdkit_ecg.simulator.randomness import RangeSampler

RHYTHMS = {"NSR", "SB", "STach", "SA", "AF", "AFL", "Brady", "PR"}


@pytest.fixture(scope="module")
def patients():
    sampler = RangeSampler(np.random.default_rng(0), 0.5)
    return [sample_patient(sampler) for _ in range(3000)]


def test_every_class_has_a_prevalence_of_at_least_five_percent(patients):
    counts = Counter(finding for patient in patients for finding in patient.findings)
    assert set(counts) == set(scored_classes(2020).names)
    assert min(counts.values()) > 0.05 * len(patients)


def test_every_patient_has_a_rhythm_and_exclusive_rhythms_do_not_occur_together(patients):
    for patient in patients:
        assert patient.findings & RHYTHMS
        assert len(patient.findings & {"NSR", "SB", "STach", "AF", "AFL", "PR"}) <= 1


def test_combinations_of_findings_are_medically_possible(patients):
    for findings in (patient.findings for patient in patients):
        assert "LAnFB" not in findings or "LAD" in findings
        assert not {"LAD", "RAD"} <= findings
        assert len(findings & {"CRBBB", "IRBBB", "LBBB", "NSIVCB"}) <= 1
        assert not findings & {"IAVB", "LPR", "PAC"} or findings & {"NSR", "SB", "SA"}
        assert "PR" not in findings or len(findings) == 1


def test_findings_depend_on_age(patients):
    def mean_age(finding):
        return np.mean([patient.age for patient in patients if finding in patient.findings and patient.age])

    assert mean_age("AF") > mean_age("NSR") + 5 > mean_age("SA")


def test_some_ages_and_sexes_are_unknown(patients):
    assert 0.02 < np.mean([patient.age is None for patient in patients]) < 0.1
    assert 0.01 < np.mean([patient.sex is None for patient in patients]) < 0.06
