"""Folds have equal shares of every class and database, and never divide a group."""

import numpy as np
import pytest

from kdkit import RecipeError
from kdkit_ecg.datasets.folds import stratified_folds


def cohort(records=600, seed=0):
    generator = np.random.default_rng(seed)
    labels = (generator.random((records, 6)) < [0.5, 0.2, 0.1, 0.05, 0.02, 0.01]).astype(float)
    groups = [f"P{number}" for number in generator.integers(0, 2 * records // 3, records)]
    strata = [("big", "small")[number] for number in (generator.random(records) < 0.2).astype(int)]
    return labels, groups, strata


def sum_per_fold(folds, counts, k=5):
    return np.stack([counts[folds == fold].sum(axis=0) for fold in range(k)])


def test_every_class_of_every_stratum_has_its_share_in_every_fold():
    labels, groups, strata = cohort()
    folds = stratified_folds(labels, groups, strata)
    for stratum in ("big", "small"):
        within = labels * (np.array(strata) == stratum)[:, None]
        counts = sum_per_fold(folds, within)
        assert np.abs(counts - within.sum(axis=0) / 5).max() < 3
    assert np.ptp(np.bincount(folds)) <= 3


def test_groups_are_not_divided():
    labels, groups, strata = cohort()
    folds = stratified_folds(labels, groups, strata)
    for group in set(groups):
        assert len({fold for fold, name in zip(folds.tolist(), groups, strict=True) if name == group}) == 1


def test_folds_do_not_depend_on_the_order_of_the_records_or_the_names_of_the_strata():
    labels, groups, strata = cohort()
    folds = stratified_folds(labels, groups, strata)
    order = np.random.default_rng(1).permutation(len(folds))
    renamed = [{"big": "z", "small": "a"}[strata[row]] for row in order]
    again = stratified_folds(labels[order], [groups[row] for row in order], renamed)
    assert again.tolist() == folds[order].tolist()


def test_another_seed_makes_other_folds():
    labels, groups, strata = cohort()
    assert (stratified_folds(labels, groups, strata, seed=1) != stratified_folds(labels, groups, strata)).mean() > 0.5


def test_fixed_groups_stay_and_new_groups_balance_the_classes():
    labels, groups, strata = cohort()
    few = stratified_folds(labels[:400], groups[:400], strata[:400])
    fixed = dict(zip(groups[:400], few.tolist(), strict=True))
    folds = stratified_folds(labels, groups, strata, fixed=fixed)
    assert folds[:400].tolist() == few.tolist()
    # New records of a patient with a fold go to that fold, so the shares are less exact.
    assert np.abs(sum_per_fold(folds, labels) - labels.sum(axis=0) / 5).max() < 6


def test_a_rare_class_is_in_as_many_folds_as_it_has_records():
    labels = np.zeros((100, 2))
    labels[:, 0] = 1
    labels[:4, 1] = 1
    folds = stratified_folds(labels, [f"P{row}" for row in range(100)], ["stratum"] * 100)
    assert len(set(folds[:4].tolist())) == 4


def test_one_fold_and_fixed_folds_that_do_not_exist_are_refused():
    labels, groups, strata = cohort(20)
    with pytest.raises(RecipeError, match="two folds or more, got 1"):
        stratified_folds(labels, groups, strata, k=1)
    with pytest.raises(RecipeError, match="folds other than 0 to 4"):
        stratified_folds(labels, groups, strata, fixed={groups[0]: 5})
