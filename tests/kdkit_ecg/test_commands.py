"""`kdkit ecg folds` writes a folds file; the other commands are tested in tests/integration."""

import pytest

from kdkit.cli.main import call
from kdkit_ecg import Challenge2020
from kdkit_ecg.datasets.folds import Folds
from tests.helpers.wfdb_files import write_record


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    for number in range(12):
        write_record(folder, f"A{number:04d}", codes=("426783006", "164889003")[number % 2], noise=number + 1)
    return folder


def test_folds_are_written_and_used_by_a_data_set(tree, tmp_path, capsys):
    out = tmp_path / "folds.csv"
    assert call(["ecg", "folds", str(tree), "--out", str(out), "-k", "3", "--seed", "1"]) == 0
    assert "all: 4 + 4 + 4 = 12" in capsys.readouterr().out
    assert Folds.read(out).k == 3
    data = Challenge2020(tree, folds=out, fold=2, length=64)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [4, 4, 4]


def test_records_with_a_fold_stay_in_it(tree, tmp_path):
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    assert call(["ecg", "folds", str(tree), "--out", str(first), "-k", "3"]) == 0
    write_record(tree, "A0099", noise=99)
    assert call(["ecg", "folds", str(tree), "--out", str(second), "-k", "3", "--keep", str(first)]) == 0
    before, after = Folds.read(first).entries, Folds.read(second).entries
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {"A0099"}


def test_a_folder_without_records_is_refused_and_nothing_is_written(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert call(["ecg", "folds", str(tmp_path / "empty"), "--out", str(tmp_path / "folds.csv")]) == 2
    assert "empty" in capsys.readouterr().err
    assert not (tmp_path / "folds.csv").exists()


def test_folds_to_keep_are_no_substitute_for_records_that_can_be_used(tree, tmp_path, capsys):
    kept, folder = tmp_path / "kept.csv", tmp_path / "unusable"
    assert call(["ecg", "folds", str(tree), "--out", str(kept), "-k", "3"]) == 0
    write_record(folder, "B1", codes="1")
    assert call(["ecg", "folds", str(folder), "--out", str(tmp_path / "new.csv"), "-k", "3", "--keep", str(kept)]) == 2
    assert "unusable can be used:\n0 of 1 records read\n  1 excluded, no scored code: B1" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_named(tree, tmp_path, capsys):
    assert call(["ecg", "folds", str(tree), "--out", str(tree / "A0001.hea" / "folds.csv"), "-k", "3"]) == 2
    assert "folds.csv cannot be written" in capsys.readouterr().err
