"""Assign records to folds and splits so that no patient is in two of them."""

from kdkit_ecg.datasets.folds.folds_file import FoldEntry, Folds
from kdkit_ecg.datasets.folds.patients import assign_persons
from kdkit_ecg.datasets.folds.random_split import hash_fraction, split_by_patient
from kdkit_ecg.datasets.folds.stratified import stratified_folds

__all__ = ["FoldEntry", "Folds", "assign_persons", "hash_fraction", "split_by_patient", "stratified_folds"]
