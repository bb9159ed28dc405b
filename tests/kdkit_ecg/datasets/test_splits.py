"""Patients are assigned to splits at random, and independently of each other."""

import numpy as np
import pytest

from kdkit import RecipeError
from kdkit_ecg.datasets.splits import require_shares, split_by_patient

PATIENTS = [f"P{number // 3}" for number in range(3000)]
SHARES = (0.7, 0.15, 0.15)


def test_every_row_is_in_one_split():
    rows = np.concatenate(split_by_patient(PATIENTS, 0, SHARES))
    assert sorted(rows.tolist()) == list(range(len(PATIENTS)))


def test_no_patient_is_in_two_splits():
    train, validation, test = ({PATIENTS[row] for row in rows} for rows in split_by_patient(PATIENTS, 0, SHARES))
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_shares_are_reached_on_average():
    parts = [len(rows) / len(PATIENTS) for rows in split_by_patient(PATIENTS, 1, SHARES)]
    assert np.allclose(parts, SHARES, atol=0.05)


def test_additional_records_move_no_patient():
    few = split_by_patient(PATIENTS[:900], 0, SHARES)
    many = split_by_patient(PATIENTS, 0, SHARES)
    for rows_of_few, rows_of_many in zip(few, many, strict=True):
        assert rows_of_few.tolist() == [row for row in rows_of_many.tolist() if row < 900]


def test_another_seed_makes_other_splits():
    assert split_by_patient(PATIENTS, 0, SHARES)[2].tolist() != split_by_patient(PATIENTS, 1, SHARES)[2].tolist()


def test_a_share_of_zero_is_an_empty_split():
    train, validation, test = split_by_patient(PATIENTS, 0, (0.8, 0.0, 0.2))
    assert len(validation) == 0
    assert len(train) + len(test) == len(PATIENTS)


@pytest.mark.parametrize(
    "shares", [(0.7, 0.1, 0.1), (1.2, -0.1, -0.1), (0.5, 0.5), (0.25,) * 4, 0.5, "abc", (0.5, 0.25, "0.25")]
)
def test_shares_are_three_numbers_of_at_least_0_that_add_up_to_1(shares):
    with pytest.raises(RecipeError, match="shares must be three numbers of at least 0 that add up to 1"):
        require_shares(shares)
