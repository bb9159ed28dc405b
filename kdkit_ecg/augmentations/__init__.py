"""Augment ECG signals during training with changes that recorders, electrodes and hearts cause.

An augmentation is a pure function of (signal, rate, generator), and the generator is a function of (seed, id, draw).
Therefore a teacher and its student see the same augmented signal, in any order and process, and teacher outputs can be
cached.
"""

from kdkit_ecg.augmentations.amplitude import CutOut, LeadDropout, Scaling
from kdkit_ecg.augmentations.base import Augmentation, Mixup, Signal, Sometimes, check_augmentations
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
