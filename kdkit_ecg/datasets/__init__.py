"""Data sets of recorded and simulated ECGs."""

from kdkit_ecg.datasets.challenge import Challenge2020, Challenge2021, make_folds
from kdkit_ecg.datasets.ptbxl import PTBXL
from kdkit_ecg.datasets.records import Records
from kdkit_ecg.datasets.synthetic import Synthetic

__all__ = ["PTBXL", "Challenge2020", "Challenge2021", "Records", "Synthetic", "make_folds"]
