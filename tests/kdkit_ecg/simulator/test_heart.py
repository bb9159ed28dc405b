"""A QRS has the duration, the axis and the voltage that it is built for."""

import numpy as np
import pytest

from kdkit_ecg.simulator.heart import QRS_EDGE, Force, Qrs, Waves
from kdkit_ecg.simulator.lead_projection import LEAD_FIELD, twelve_leads

TIMES = np.arange(-0.1, 0.4, 0.0005)
FORCES = (
    Force(0.2, 0.08, (-0.15, 0.0, 0.2)),
    Force(0.45, 0.09, (1.0, 0.0, -0.3), main=True),
    Force(0.7, 0.1, (-0.3, -0.2, 0.4)),
)


def leads(duration=0.1, axis=50.0, voltage=1.2):
    qrs = Qrs(forces=FORCES, duration=duration, axis=axis, voltage=voltage)
    return twelve_leads(LEAD_FIELD @ qrs.waves().vectors(TIMES))


@pytest.mark.parametrize("duration", [0.08, 0.118, 0.16])
def test_a_qrs_begins_at_zero_and_has_the_required_duration(duration):
    # The eight independent leads, over which QRS_EDGE is defined.
    size = np.sqrt(np.mean(np.square(leads(duration)[[0, 1, 6, 7, 8, 9, 10, 11]]), axis=0))
    above = TIMES[size > QRS_EDGE * size.max()]
    assert above[0] == pytest.approx(0, abs=0.001)
    assert above[-1] == pytest.approx(duration, abs=0.002)


@pytest.mark.parametrize("axis", [-75.0, -35.0, 0.0, 60.0, 95.0, 150.0])
def test_the_area_of_a_qrs_has_the_required_axis(axis):
    area = leads(axis=axis).sum(axis=1)
    # aVF has a gain of sqrt(3) / 2 relative to lead I.
    assert np.degrees(np.arctan2(area[5] * 2 / np.sqrt(3), area[0])) == pytest.approx(axis, abs=0.01)


@pytest.mark.parametrize("voltage", [0.3, 0.45, 1.5])
def test_voltage_bounds_the_limb_leads_and_twice_it_the_chest_leads(voltage):
    sizes = np.ptp(leads(voltage=voltage), axis=1)
    shares = sizes[:6].max() / voltage, sizes[6:].max() / (2 * voltage)
    assert max(shares) == pytest.approx(1, abs=0.01)


def test_repeated_waves_are_the_sum_of_shifted_ones():
    waves = Waves(np.array([0.0, 0.1]), np.array([0.01, 0.03]), np.array([0.02, 0.03]), np.eye(3)[:2])
    times = np.arange(0, 3, 0.01)
    onsets = np.array([-0.05, 0.703, 0.9, 2.95, 40.0])
    expected = sum(waves.vectors(times - onset) for onset in onsets)
    np.testing.assert_allclose(waves.repeated(onsets, times), expected, atol=1e-7)
