"""Project the heart's electrical vector onto the twelve leads."""

import numpy as np
from numpy.typing import NDArray

from kdkit_ecg.leads import LIMB_LEADS

Array = NDArray[np.float64]

INDEPENDENT_LEADS = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")

# Einthoven's equilateral triangle: lead I looks along 0 degrees of the frontal plane, II along 60.
_LIMB = np.array([(1.0, 0.0, 0.0), (0.5, np.sqrt(0.75), 0.0)])
# For V1 to V6: the direction from the left arm towards the front in the horizontal plane, how far it points down (both
# in degrees), and the gain. The electrodes of V2 to V4 are the closest to the heart, hence gains above 1.
_CHEST = np.array(
    (
        (115.0, -4.0, 1.0),
        (95.0, -2.0, 1.6),
        (75.0, 2.0, 1.6),
        (55.0, 6.0, 1.5),
        (28.0, 8.0, 1.2),
        (5.0, 10.0, 1.0),
    )
)
_AROUND, _DOWN = np.radians(_CHEST[:, :2]).T
_DIRECTIONS = np.stack([np.cos(_AROUND) * np.cos(_DOWN), np.sin(_DOWN), np.sin(_AROUND) * np.cos(_DOWN)], axis=1)

# (8, 3): the voltage in each independent lead per mV of the heart's vector (left, down, front).
LEAD_FIELD: Array = np.vstack([_LIMB, _DIRECTIONS * _CHEST[:, 2:]])


def twelve_leads(independent: Array) -> Array:
    """Return all leads, (8, time) -> (12, time), in the order of LEADS: the limb leads follow from I and II."""
    first, second = independent[:2]
    limbs = [p * first + q * second for p, q in LIMB_LEADS.values()]
    return np.vstack([*limbs, independent[2:]])
