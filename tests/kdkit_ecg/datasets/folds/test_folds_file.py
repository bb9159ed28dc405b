"""Folds are written to a file and read back."""

import pytest

from kdkit import DataError
from kdkit_ecg.datasets.folds import Folds, Place

FOLDS = Folds(
    places={"A2": Place("cpsc", "", 1), "A1": Place("cpsc", "P, one", 0), "A3": Place("ptb", "P, one", 0)},
    k=2,
    made={"seed": "3", "grouping": "patient"},
)


def test_a_file_is_read_back_as_it_was_written(tmp_path):
    FOLDS.write(tmp_path / "folds.csv")
    assert Folds.read(tmp_path / "folds.csv") == FOLDS
    assert [path.name for path in tmp_path.iterdir()] == ["folds.csv"]


def test_a_file_is_a_table_by_record_below_a_line_on_its_making(tmp_path):
    FOLDS.write(tmp_path / "folds.csv")
    first, *table = (tmp_path / "folds.csv").read_text().splitlines()
    assert first == f"# kdkit folds version=1 k=2 seed=3 grouping=patient fingerprint={FOLDS.fingerprint}"
    assert table == ["record,database,patient,fold", 'A1,cpsc,"P, one",0', "A2,cpsc,,1", 'A3,ptb,"P, one",0']


def test_the_summary_counts_records_by_fold_and_database():
    assert FOLDS.summary.splitlines() == ["all: 2 + 1 = 3", "cpsc: 1 + 1 = 2", "ptb: 1 + 0 = 1"]


def test_the_fingerprint_is_of_records_and_folds_alone():
    renamed = Folds(places={name: Place("x", "", place.fold) for name, place in FOLDS.places.items()}, k=2)
    moved = Folds(places={**FOLDS.places, "A3": Place("ptb", "P, one", 1)}, k=2)
    assert renamed.fingerprint == FOLDS.fingerprint != moved.fingerprint


def test_patients_in_several_folds_are_named():
    assert FOLDS.parted == {}
    assert Folds(places={**FOLDS.places, "A3": Place("ptb", "P, one", 1)}, k=2).parted == {"P, one": [0, 1]}


def test_a_file_that_a_spreadsheet_saved_is_the_same(tmp_path):
    FOLDS.write(tmp_path / "folds.csv")
    first, *rows = (tmp_path / "folds.csv").read_text().splitlines()
    (tmp_path / "folds.csv").write_text("\ufeff" + "\r\n".join([f'"{first}",,,', *rows, ""]), newline="")
    assert Folds.read(tmp_path / "folds.csv") == FOLDS


def test_a_table_of_records_and_folds_is_enough(tmp_path):
    (tmp_path / "own.csv").write_text("\ufefffold,record\n1, A1\n0,A2\n")
    folds = Folds.read(tmp_path / "own.csv")
    assert (folds.k, folds.places["A1"]) == (2, Place("", "", 1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("record,part\nA1,0\n", "needs the columns record and fold, but has record, part"),
        ("record,fold\nA1,one\n", "the fold of record A1 is a number from 0, not 'one'"),
        ("record,fold\nA1\n", "the fold of record A1 is a number"),
        ("record,fold\nA1,0\nA2,1\nA1,1\n", "record A1 is in it twice, in folds 0 and 1"),
        ("record,fold\nA1,0\nA2,2\n", "3 folds are numbered 0 to 2, each with a record"),
        ("# kdkit folds version=9 k=1\nrecord,fold\nA1,0\n", "of version 9"),
        ("# kdkit folds version=1 k=1 fingerprint=00\nrecord,fold\nA1,0\n", "it was changed since; .* delete"),
        ("", "but has none"),
    ],
)
def test_a_file_that_says_nothing_certain_is_refused_by_name(tmp_path, text, said):
    (tmp_path / "folds.csv").write_text(text)
    with pytest.raises(DataError, match=rf"folds\.csv holds no folds: .*{said}"):
        Folds.read(tmp_path / "folds.csv")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no folds"):
        Folds.read(tmp_path / "folds.csv")
