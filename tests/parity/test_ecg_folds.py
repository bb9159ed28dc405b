"""Folds of the golden label tables deviate from equal shares by no more than the golden bounds."""

import json

import numpy as np
import pytest

from kdkit_ecg.datasets.folds import stratified_folds


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden" / "ecg"
    return np.load(folder / "fold_labels.npz"), json.loads((folder / "folds.json").read_text())


@pytest.mark.parametrize("name", ["raw", "ptbxl_zscored"])
@pytest.mark.parametrize("grouping", ["patient", "record"])
def test_the_share_of_every_class_is_within_the_golden_bounds(golden, name, grouping):
    tables, facts = golden
    labels = tables[f"{name}/labels_2020"].astype(float)
    patients = [f"P{number}" for number in tables[f"{name}/patient_group"]]
    groups = patients if grouping == "patient" else [str(record) for record in tables[f"{name}/record"]]
    databases = [str(index) for index in tables[f"{name}/database_index"]]
    ideal = labels.sum(axis=0) / 5
    if grouping == "patient":
        # A patient is in one fold, so the one with most records of a class limits how equal its shares can be.
        largest = np.max([labels[np.array(patients) == patient].sum(axis=0) for patient in set(patients)], axis=0)
        bound = np.maximum.reduce([np.full(24, 3.0), 0.15 * ideal + 2, largest - ideal + 1e-9])
    else:
        deviations = facts[name]["stratified_5fold_max_deviation_seen"]
        bound = np.array([max(2, deviations[str(code)] + 1) for code in tables["class_2020"]])
    for seed in range(3):
        folds = stratified_folds(labels, groups, databases, seed=seed)
        counts = np.stack([labels[folds == fold].sum(axis=0) for fold in range(5)])
        assert (np.abs(counts - ideal).max(axis=0) <= bound).all()
        assert np.ptp(np.bincount(folds)) <= 4
        for group in set(groups):
            assert len(set(folds[np.array(groups) == group].tolist())) == 1
