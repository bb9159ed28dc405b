"""Folds of the golden label tables stay within the bounds that come with them."""

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
def test_every_class_is_shared_out_as_well_as_the_golden_bounds_ask(golden, name, by):
    tables, facts = golden
    labels = tables[f"{name}/labels_2020"].astype(float)
    patients = [f"P{each}" for each in tables[f"{name}/patient_group"]]
    groups = patients if by == "patient" else [str(each) for each in tables[f"{name}/record"]]
    databases = [str(each) for each in tables[f"{name}/database_index"]]
    ideal = labels.sum(axis=0) / 5
    if by == "patient":
        # No fold can be nearer to its share than the patient with most records of a class lets it be.
        largest = np.max([labels[np.array(patients) == each].sum(axis=0) for each in set(patients)], axis=0)
        bound = np.maximum.reduce([np.full(24, 3.0), 0.15 * ideal + 2, largest - ideal + 1e-9])
    else:
        seen = facts[name]["stratified_5fold_max_deviation_seen"]
        bound = np.array([max(2, seen[str(code)] + 1) for code in tables["class_2020"]])
    for seed in range(3):
        folds = stratified_folds(labels, groups, databases, seed=seed)
        counts = np.stack([labels[folds == fold].sum(axis=0) for fold in range(5)])
        assert (np.abs(counts - ideal).max(axis=0) <= bound).all()
        assert np.ptp(np.bincount(folds)) <= 4
        for group in set(groups):
            assert len(set(folds[np.array(groups) == group].tolist())) == 1
