import numpy as np

from kdkit_ecg.simulator.lead_projection import FIELD, INDEPENDENT, twelve_leads


def test_einthoven_and_goldberger_hold_for_any_electrode_signals():
    independent = np.random.default_rng(0).normal(size=(8, 50))
    first, second, third, avr, avl, avf = twelve_leads(independent)[:6]
    np.testing.assert_allclose(third, second - first, atol=1e-12)
    np.testing.assert_allclose(avr, -(first + second) / 2, atol=1e-12)
    np.testing.assert_allclose(avl, first - second / 2, atol=1e-12)
    np.testing.assert_allclose(avf, second - first / 2, atol=1e-12)


def test_chest_leads_follow_the_limb_leads_unchanged():
    independent = np.random.default_rng(1).normal(size=(8, 50))
    leads = twelve_leads(independent)
    assert np.array_equal(leads[6:], independent[2:])
    assert np.array_equal(leads[:2], independent[:2])


def test_a_vector_to_the_left_is_seen_upright_in_lead_one_and_v6_and_one_to_the_front_in_v1():
    seen = dict(zip(INDEPENDENT, FIELD.T[0], strict=True))
    assert seen["I"] == 1
    assert seen["V6"] > 0.9
    assert dict(zip(INDEPENDENT, FIELD.T[2], strict=True))["V1"] > 0.8


def test_a_vector_downwards_is_upright_in_the_inferior_leads_and_level_in_lead_one():
    leads = twelve_leads(FIELD @ np.array([[0.0], [1.0], [0.0]]))[:, 0]
    assert leads[0] == 0
    assert (leads[[1, 2, 5]] > 0.8).all()
