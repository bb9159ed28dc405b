"""Assign records to folds so that no patient is in two of them."""

from kdkit_ecg.datasets.folds.folds_file import FoldEntry, Folds
from kdkit_ecg.datasets.folds.patients import assign_persons, divided_persons, neighbours_of_one_patient
from kdkit_ecg.datasets.folds.stratified import hash_fraction, stratified_folds

__all__ = [
    "FoldEntry",
    "Folds",
    "assign_persons",
    "divided_persons",
    "hash_fraction",
    "neighbours_of_one_patient",
    "stratified_folds",
]
