"""The twelve leads follow from the independent ones, and the lead field has the right directions."""

import numpy as np

from kdkit_ecg.simulator.lead_projection import INDEPENDENT_LEADS, LEAD_FIELD, twelve_leads


def test_einthoven_and_goldberger_hold_for_any_electrode_signals():
    independent = np.random.default_rng(0).normal(size=(8, 50))
    first, second, third, avr, avl, avf = twelve_leads(independent)[:6]
    np.testing.assert_allclose(third, second - first, atol=1e-12)
    np.testing.assert_allclose(avr, -(first + second) / 2, atol=1e-12)
    np.testing.assert_allclose(avl, first - second / 2, atol=1e-12)
    np.testing.assert_allclose(avf, second - first / 2, atol=1e-12)


def test_chest_leads_come_last_and_are_not_changed():
    independent = np.random.default_rng(1).normal(size=(8, 50))
    leads = twelve_leads(independent)
    assert np.array_equal(leads[6:], independent[2:])
    assert np.array_equal(leads[:2], independent[:2])


def test_a_vector_to_the_left_is_positive_in_lead_one_and_v6_and_one_to_the_front_in_v1():
    left = dict(zip(INDEPENDENT_LEADS, LEAD_FIELD.T[0], strict=True))
    assert left["I"] == 1
    assert left["V6"] > 0.9
    assert dict(zip(INDEPENDENT_LEADS, LEAD_FIELD.T[2], strict=True))["V1"] > 0.8


def test_a_downward_vector_is_positive_in_the_inferior_leads_and_zero_in_lead_one():
    leads = twelve_leads(LEAD_FIELD @ np.array([[0.0], [1.0], [0.0]]))[:, 0]
    assert leads[0] == 0
    assert (leads[[1, 2, 5]] > 0.8).all()
