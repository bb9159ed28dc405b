"""Change what training sees of a signal from draw to draw, as recorders, electrodes and hearts would.

Each is a pure function of (signal, rate, generator), and the generator one of (seed, id, draw): so a teacher and its
student see the same change, in whatever order and process, and an answer about it can be kept.
"""

from kdkit_ecg.augmentations.amplitude import CutOut, LeadDropout, Scaling
from kdkit_ecg.augmentations.base import Augmentation, Signal
from kdkit_ecg.augmentations.compose import Sometimes, check_augmentations
from kdkit_ecg.augmentations.mixup import Mixup
from kdkit_ecg.augmentations.noise import BaselineWander, GaussianNoise, PowerLine
from kdkit_ecg.augmentations.timewarp import TimeWarp

__all__ = [
    "Augmentation",
    "BaselineWander",
    "CutOut",
    "GaussianNoise",
    "LeadDropout",
    "Mixup",
    "PowerLine",
    "Scaling",
    "Signal",
    "Sometimes",
    "TimeWarp",
    "check_augmentations",
]
