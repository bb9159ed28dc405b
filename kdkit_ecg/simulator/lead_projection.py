"""Show the heart's electrical vector on the twelve leads."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

INDEPENDENT = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")

# Lead: direction from the left arm towards the front in the horizontal plane, how far it points down (both in
# degrees), and gain. The chest electrodes sit close to the heart, V2 to V4 closest, hence gains above 1.
_CHEST = (
    (115.0, -4.0, 1.0),
    (95.0, -2.0, 1.6),
    (75.0, 2.0, 1.6),
    (55.0, 6.0, 1.5),
    (28.0, 8.0, 1.2),
    (5.0, 10.0, 1.0),
)


def _field() -> Array:
    # Einthoven's equilateral triangle: lead I looks along 0 degrees of the frontal plane, II along 60.
    limb = np.array([(1.0, 0.0, 0.0), (0.5, np.sqrt(0.75), 0.0)])
    around, down = np.radians(np.array(_CHEST)[:, :2]).T
    chest = np.stack([np.cos(around) * np.cos(down), np.sin(down), np.sin(around) * np.cos(down)], axis=1)
    return np.vstack([limb, chest * np.array(_CHEST)[:, 2:]])


# (8, 3): what one mV of the heart's vector (left, down, front) gives in each of the independent leads.
FIELD = _field()


def twelve_leads(independent: Array) -> Array:
    """Return all leads, (8, time) -> (12, time), in the order I II III aVR aVL aVF V1 ... V6.

    The limb leads beside I and II follow from them: III = II - I (Einthoven), aVR = -(I + II) / 2, aVL = I - II / 2,
    aVF = II - I / 2 (Goldberger).
    """
    first, second = independent[0], independent[1]
    derived = (second - first, -(first + second) / 2, first - second / 2, second - first / 2)
    return np.vstack([independent[:2], derived, independent[2:]])
