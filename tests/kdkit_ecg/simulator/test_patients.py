from collections import Counter

import numpy as np
import pytest

from kdkit_ecg.labels import scored_classes
from kdkit_ecg.simulator.patients import Patient, draw_patient
from kdkit_ecg.simulator.randomness import RandomRange

RHYTHMS = {"NSR", "SB", "STach", "SA", "AF", "AFL", "Brady", "PR"}


@pytest.fixture(scope="module")
def patients():
    source = RandomRange(np.random.default_rng(0), 0.5)
    return [draw_patient(source) for _ in range(3000)]


def test_every_class_is_found_in_at_least_five_in_a_hundred(patients):
    counts = Counter(finding for patient in patients for finding in patient.findings)
    assert set(counts) == set(scored_classes(2020).names)
    assert min(counts.values()) > 0.05 * len(patients)


def test_everyone_has_a_rhythm_and_exclusive_rhythms_are_not_mixed(patients):
    for patient in patients:
        assert patient.findings & RHYTHMS
        assert len(patient.findings & {"NSR", "SB", "STach", "AF", "AFL", "PR"}) <= 1


def test_findings_go_together_as_medicine_says(patients):
    for found in (patient.findings for patient in patients):
        assert "LAnFB" not in found or "LAD" in found
        assert not {"LAD", "RAD"} <= found
        assert len(found & {"CRBBB", "IRBBB", "LBBB", "NSIVCB"}) <= 1
        assert not found & {"IAVB", "LPR", "PAC"} or found & {"NSR", "SB", "SA"}
        assert "PR" not in found or len(found) == 1


def test_findings_say_something_about_age(patients):
    def mean_age(finding):
        return np.mean([patient.age for patient in patients if finding in patient.findings and patient.age])

    assert mean_age("AF") > mean_age("NSR") + 5 > mean_age("SA")


def test_some_ages_and_sexes_are_unknown(patients):
    assert 0.02 < np.mean([patient.age is None for patient in patients]) < 0.1
    assert 0.01 < np.mean([patient.female is None for patient in patients]) < 0.06


def test_person_vector_is_zero_where_unknown():
    nothing = frozenset[str]()
    assert Patient(findings=nothing, age=None, female=None).vector() == (0, 0, 0, 0, 0)
    assert Patient(findings=nothing, age=50, female=True).vector() == (0.5, 1, 1, 0, 1)
    assert Patient(findings=nothing, age=50, female=False).vector() == (0.5, 1, 0, 1, 1)
