"""Which records are learned from, chosen on and reported on, so that no patient is in two of these."""

from kdkit_ecg.datasets.folds.folds_file import Folds, Place
from kdkit_ecg.datasets.folds.patients import people
from kdkit_ecg.datasets.folds.random_split import fraction, split_by_patient
from kdkit_ecg.datasets.folds.stratified import stratified_folds

__all__ = ["Folds", "Place", "fraction", "people", "split_by_patient", "stratified_folds"]
