"""Patients are assigned to splits at random, and independently of each other."""

import numpy as np
import pytest

from kdkit import RecipeError
from kdkit_ecg.datasets.folds import split_by_patient

PATIENTS = [f"P{number // 3}" for number in range(3000)]


def test_every_row_is_in_one_split():
    rows = np.concatenate(split_by_patient(PATIENTS, seed=0))
    assert sorted(rows.tolist()) == list(range(len(PATIENTS)))


def test_no_patient_is_in_two_splits():
    train, validation, test = ({PATIENTS[row] for row in rows} for rows in split_by_patient(PATIENTS, seed=0))
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_shares_are_reached_on_average():
    parts = [len(rows) / len(PATIENTS) for rows in split_by_patient(PATIENTS, seed=1)]
    assert np.allclose(parts, (0.7, 0.15, 0.15), atol=0.05)


def test_additional_records_move_no_patient():
    few = split_by_patient(PATIENTS[:900], seed=0)
    many = split_by_patient(PATIENTS, seed=0)
    for rows_of_few, rows_of_many in zip(few, many, strict=True):
        assert rows_of_few.tolist() == [row for row in rows_of_many.tolist() if row < 900]


def test_another_seed_makes_other_splits():
    assert split_by_patient(PATIENTS, seed=0)[2].tolist() != split_by_patient(PATIENTS, seed=1)[2].tolist()


def test_a_share_of_zero_is_an_empty_split():
    train, validation, test = split_by_patient(PATIENTS, 0, (0.8, 0.0, 0.2))
    assert len(validation) == 0
    assert len(train) + len(test) == len(PATIENTS)


@pytest.mark.parametrize("shares", [(0.7, 0.1, 0.1), (1.2, -0.1, -0.1)])
def test_shares_that_are_negative_or_do_not_add_up_to_1_are_refused(shares):
    with pytest.raises(RecipeError, match="must be at least 0 and add up to 1"):
        split_by_patient(PATIENTS, 0, shares)
