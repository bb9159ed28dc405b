"""Stratified folds of the golden label tables stay within the bounds of the golden files."""

import json

import numpy as np
import pytest

from kdkit_ecg.datasets.folds import stratified_folds


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden" / "ecg"
    return np.load(folder / "fold_labels.npz"), json.loads((folder / "folds.json").read_text())


@pytest.mark.parametrize("name", ["raw", "ptbxl_zscored"])
@pytest.mark.parametrize("by", ["patient", "record"])
def test_every_class_is_distributed_within_the_golden_bounds(golden, name, by):
    tables, statistics = golden
    labels = tables[f"{name}/labels_2020"].astype(float)
    patients = [f"P{group}" for group in tables[f"{name}/patient_group"]]
    groups = patients if by == "patient" else [str(record) for record in tables[f"{name}/record"]]
    databases = [str(index) for index in tables[f"{name}/database_index"]]
    ideal = labels.sum(axis=0) / 5
    if by == "patient":
        # The patient with the most records of a class bounds how close a fold can be to its share of the class.
        largest = np.max([labels[np.array(patients) == patient].sum(axis=0) for patient in set(patients)], axis=0)
        bound = np.maximum.reduce([np.full(24, 3.0), 0.15 * ideal + 2, largest - ideal + 1e-9])
    else:
        seen = statistics[name]["stratified_5fold_max_deviation_seen"]
        bound = np.array([max(2, seen[str(code)] + 1) for code in tables["class_2020"]])
    for seed in range(3):
        folds = stratified_folds(labels, groups, databases, seed=seed)
        counts = np.stack([labels[folds == fold].sum(axis=0) for fold in range(5)])
        assert (np.abs(counts - ideal).max(axis=0) <= bound).all()
        assert np.ptp(np.bincount(folds)) <= 4
        for group in set(groups):
            assert len(set(folds[np.array(groups) == group].tolist())) == 1
