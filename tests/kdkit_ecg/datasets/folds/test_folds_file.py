"""Folds are written to a file and read back, and files that do not contain folds are refused."""

import pytest

from kdkit import DataError
from kdkit_ecg.datasets.folds import FoldEntry, Folds

FOLDS = Folds(
    entries={"A2": FoldEntry("cpsc", "", 1), "A1": FoldEntry("cpsc", "P, one", 0), "A3": FoldEntry("ptb", "P, one", 0)},
    k=2,
    provenance={"seed": "3", "grouping": "patient"},
)


def test_a_file_is_read_back_as_it_was_written(tmp_path):
    FOLDS.write(tmp_path / "folds.csv")
    assert Folds.read(tmp_path / "folds.csv") == FOLDS
    assert [path.name for path in tmp_path.iterdir()] == ["folds.csv"]


def test_a_tilde_in_a_path_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    FOLDS.write("~/folds.csv")
    assert (tmp_path / "folds.csv").is_file()
    assert Folds.read("~/folds.csv") == FOLDS


def test_a_file_is_a_table_sorted_by_record_below_a_line_of_metadata(tmp_path):
    FOLDS.write(tmp_path / "folds.csv")
    first, *table = (tmp_path / "folds.csv").read_text().splitlines()
    assert first == f"# kdkit folds format=2 folds=2 seed=3 grouping=patient fingerprint={FOLDS.fingerprint}"
    assert table == ["record,database,patient,fold", 'A1,cpsc,"P, one",0', "A2,cpsc,,1", 'A3,ptb,"P, one",0']


def test_the_summary_counts_records_by_fold_and_database():
    assert FOLDS.summary.splitlines() == ["all: 2 + 1 = 3", "cpsc: 1 + 1 = 2", "ptb: 1 + 0 = 1"]


def test_the_fingerprint_depends_on_records_and_folds_alone():
    renamed = Folds(entries={name: FoldEntry("x", "", entry.fold) for name, entry in FOLDS.entries.items()}, k=2)
    moved = Folds(entries={**FOLDS.entries, "A3": FoldEntry("ptb", "P, one", 1)}, k=2)
    assert renamed.fingerprint == FOLDS.fingerprint != moved.fingerprint


def test_patients_with_records_in_several_folds_are_named():
    assert FOLDS.divided_patients == {}
    assert Folds(entries={**FOLDS.entries, "A3": FoldEntry("ptb", "P, one", 1)}, k=2).divided_patients == {
        "P, one": [0, 1]
    }


def test_a_file_saved_by_a_spreadsheet_is_read_the_same(tmp_path):
    FOLDS.write(tmp_path / "folds.csv")
    first, *rows = (tmp_path / "folds.csv").read_text().splitlines()
    (tmp_path / "folds.csv").write_text("\ufeff" + "\r\n".join([f'"{first}",,,', *rows, ""]), newline="")
    assert Folds.read(tmp_path / "folds.csv") == FOLDS


def test_a_table_of_records_and_folds_is_enough(tmp_path):
    (tmp_path / "table.csv").write_text("\ufefffold,record\n1.0, A1\n0,A2\n")
    folds = Folds.read(tmp_path / "table.csv")
    assert (folds.k, folds.entries["A1"]) == (2, FoldEntry("", "", 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("record,part\nA1,0\n", "needs the columns record and fold, but has record, part"),
        ("record,fold\nA1,one\n", "the fold of record A1 must be a number from 0, got 'one'"),
        ("record,fold\nA1\n", "the fold of record A1 must be a number"),
        ("record,fold\nA1,0\nA2,1\nA1,1\n", "record A1 occurs twice, in folds 0 and 1"),
        ("record,fold\nA1,0\nA2,2\n", "expected 3 folds numbered 0 to 2, each with a record"),
        (
            "# kdkit folds format=9 folds=1\nrecord,fold\nA1,0\n",
            "expected format 2, got format 9; make the folds again",
        ),
        ("# kdkit folds format=2 folds=1 fingerprint=00\nrecord,fold\nA1,0\n", "it was changed since .* delete"),
        ("", "but has no columns"),
    ],
)
def test_a_file_that_is_wrong_or_ambiguous_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "folds.csv").write_text(text)
    with pytest.raises(DataError, match=rf"folds\.csv is not a folds file: .*{message}"):
        Folds.read(tmp_path / "folds.csv")


def test_a_file_of_format_1_is_refused_and_can_be_read_without_its_first_line(tmp_path):
    path = tmp_path / "folds.csv"
    first_line = "# kdkit folds version=1 k=2 seed=3 grouping=patient fingerprint=79d37ab43eba6a92\n"
    table = "record,database,patient,fold\nA1,cpsc,P1,0\nA2,cpsc,,1\n"
    path.write_text(first_line + table)
    with pytest.raises(
        DataError, match=r"expected format 2, got format 1; make the folds again .* delete the first line"
    ):
        Folds.read(path)
    path.write_text(table)
    assert Folds.read(path).entries == {"A1": FoldEntry("cpsc", "P1", 0), "A2": FoldEntry("cpsc", "", 1)}


def test_a_file_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a folds file"):
        Folds.read(tmp_path / "folds.csv")


def test_a_patient_that_is_missing_in_words_is_not_a_patient(tmp_path):
    path = tmp_path / "folds.csv"
    path.write_text("record,patient,fold\nA1,nan,0\nA2,Unknown,1\nA3,nan,1\nA4,P1,0\nA5,7.0,1\n")
    folds = Folds.read(path)
    assert [entry.patient for entry in folds.entries.values()] == ["", "", "", "P1", "7"]
    assert folds.divided_patients == {}


@pytest.mark.parametrize("column", ["Patient", "patient_id", "Subject_ID"])
def test_patients_are_found_by_the_usual_names_of_their_column(tmp_path, column):
    (tmp_path / "table.csv").write_text(f"record,{column},fold\nA1,P1,0\nA2,P1,1\n,,\n")
    assert Folds.read(tmp_path / "table.csv").divided_patients == {"P1": [0, 1]}


def test_records_may_have_a_suffix_in_any_case(tmp_path):
    path = tmp_path / "folds.csv"
    path.write_text("record,fold\nA1.hea,0\nA2.MAT,1\nA3,1\n")
    assert list(Folds.read(path).entries) == ["A1", "A2", "A3"]
