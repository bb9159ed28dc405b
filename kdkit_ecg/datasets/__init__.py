"""The data sets of kdkit_ecg."""

from kdkit_ecg.datasets.challenge import Challenge2020, Challenge2021
from kdkit_ecg.datasets.synthetic import Synthetic

__all__ = ["Challenge2020", "Challenge2021", "Synthetic"]
