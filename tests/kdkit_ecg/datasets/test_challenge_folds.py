"""The train, validation and test splits never share a record, a person or a signal."""

import hashlib
import tarfile

import numpy as np
import pytest

from kdkit import DataError, RecipeError
from kdkit_ecg.datasets import Challenge2020, make_folds
from kdkit_ecg.datasets.base import record_ids
from kdkit_ecg.datasets.folds import Folds
from kdkit_ecg.datasets.signals import duplicate_signals
from kdkit_ecg.records.header import read_header
from tests.helpers.wfdb_files import write_record

# No filters, so that preparing the records takes no time.
FAST = {"length": 128, "band": None, "scaling": "raw"}
RHYTHMS = ("426783006", "164889003", "427084000")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders that share patients. B90 has the signal of A0, but another name and patient. S0001.. are like PTB."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    for number in range(24):
        write_record(first / "a" / "g1", f"A{number}", codes=RHYTHMS[number % 3], noise=number)
    for number in range(12):
        write_record(second / "b", f"B{number}", codes=RHYTHMS[number % 3], noise=100 + number, rate=250)
    write_record(second / "b", "B90", codes=RHYTHMS[1], noise=0)
    for number in range(1, 7):
        write_record(second / "ptb", f"S000{number}", noise=200 + number, age=60 + number // 3)
    rows = [f"A{number},P{number // 2}" for number in range(24)]
    rows += [f"B{number},P{number}" for number in range(12)] + ["B90,P11"]
    (first / "records.csv").write_text("\n".join(["record,patient", *rows]))
    return [first, second]


def signals_of(split):
    return {hashlib.sha256(signal.tobytes()).hexdigest() for signal in split.signals}


def expected_person(name):
    """Return the person of a record in the folders, independently of the code under test.

    B90 merges P0 and P11: it is of P11 in the table, and has the signal of a record of P0.
    """
    number = int(name[1:])
    if name[0] == "S":
        return f"age {60 + number // 3}"
    patient = {"A": number // 2, "B": 11 if number == 90 else number}[name[0]]
    return f"P{0 if patient == 11 else patient}"


def persons_of(data, split):
    names = {int(record_ids([header.name])[0]): header.name for header in data._selected[0]}
    return {expected_person(names[id]) for id in split.ids.tolist()}


def splits_of(data):
    return data.train, data.validation, data.test


@pytest.mark.parametrize("fold", range(5))
def test_no_record_person_or_signal_is_in_two_splits(folders, fold):
    data = Challenge2020(folders, fold=fold, **FAST)
    for property_of in (lambda split: set(split.ids.tolist()), signals_of, lambda split: persons_of(data, split)):
        train, validation, test = map(property_of, splits_of(data))
        assert train
        assert validation
        assert test
        assert not train & validation
        assert not train & test
        assert not validation & test
    assert sum(map(len, splits_of(data))) == 42  # of 43 records, as B90 repeats a signal


@pytest.mark.parametrize("fold", range(5))
def test_the_paper_protocol_validates_on_the_test_split_with_a_notice_and_leaks_nothing_into_train(folders, fold):
    data = Challenge2020.paper(folders, fold=fold, length=128)
    train, validation, test = (set(split.ids.tolist()) for split in splits_of(data))
    assert validation == test
    assert not train & test
    assert not signals_of(data.train) & signals_of(data.test)
    assert len(train) + len(test) == 42
    assert any("chosen on the test split" in notice for notice in data.notices)
    assert any("a patient may be in several splits" in notice for notice in data.notices)


def test_folds_by_record_do_divide_patients(folders):  # otherwise the tests above would prove nothing
    data = Challenge2020(folders, grouping="record", **FAST)
    assert persons_of(data, data.train) & persons_of(data, data.test)
    assert make_folds(folders, grouping="record").divided_patients
    assert not make_folds(folders).divided_patients


def test_every_record_is_tested_in_one_fold_and_validated_in_the_previous_one(folders):
    splits = [Challenge2020(folders, fold=fold, **FAST) for fold in range(5)]
    tested = [id for data in splits for id in data.test.ids.tolist()]
    assert len(tested) == len(set(tested)) == 42
    for fold in range(5):
        assert splits[fold].validation.ids.tolist() == splits[(fold + 1) % 5].test.ids.tolist()


def test_a_folds_file_gives_the_same_splits_as_the_folder(folders, tmp_path):
    make_folds(folders).write(tmp_path / "folds.csv")
    from_folder = Challenge2020(folders, fold=2, **FAST)
    from_file = Challenge2020(folders, folds=tmp_path / "folds.csv", fold=2, **FAST)
    assert [split.ids.tolist() for split in splits_of(from_file)] == [
        split.ids.tolist() for split in splits_of(from_folder)
    ]
    assert from_file.fingerprint == from_folder.fingerprint
    assert Challenge2020(folders, fold=3, **FAST).fingerprint != from_folder.fingerprint
    assert Challenge2020(folders, fold=2, seed=1, **FAST).fingerprint != from_folder.fingerprint


def test_a_folds_file_contains_the_patients_of_a_folder_without_a_table(folders, tmp_path):
    make_folds(folders).write(tmp_path / "folds.csv")
    data = Challenge2020(folders[1], folds=tmp_path / "folds.csv", **FAST)
    assert len(data.test)
    assert not any("every record" in notice for notice in data.notices)
    assert data._persons["B11"] == make_folds(folders).entries["B11"].patient


def test_records_without_a_fold_are_excluded_and_missing_records_are_reported(folders, tmp_path):
    folds = make_folds(folders)
    without_a3 = Folds(entries={name: entry for name, entry in folds.entries.items() if name != "A3"}, k=5)
    data = Challenge2020(folders, folds=without_a3, **FAST)
    assert "1 excluded, no fold in the folds file: a/g1/A3" in data.summary
    assert sum(map(len, splits_of(data))) == 41
    first_folder = Challenge2020(folders[0], folds=folds, **FAST)
    assert "19 records of the folds file were not found: B0, B1, B10, ..." in first_folder.summary
    assert "19 records of the folds file were not found" in first_folder.notices[-1]
    with pytest.raises(DataError, match=r"strict=True.*(.|\n)*19 records of the folds file were not found"):
        _ = Challenge2020(folders[0], folds=folds, strict=True, **FAST).train


def test_a_folds_file_of_other_records_is_refused(folders):
    folds = make_folds(folders)
    of_other_records = Folds(entries={f"X{name}": entry for name, entry in folds.entries.items()}, k=5)
    with pytest.raises(
        DataError, match="none of the 43 records in the folds file, the first one 'XA0', is among the 43"
    ):
        _ = Challenge2020(folders, folds=of_other_records, **FAST).train


def test_a_folds_file_that_divides_patients_is_refused_unless_folds_are_by_record(folders):
    folds = make_folds(folders, grouping="record")
    with pytest.raises(
        DataError, match=r"patients have records in several folds, .* use grouping='record' to accept this"
    ):
        _ = Challenge2020(folders, folds=folds, **FAST).train
    assert len(Challenge2020(folders, folds=folds, grouping="record", **FAST).train)


def test_records_keep_their_fold_when_others_are_added(folders):
    folds = make_folds(folders, seed=3)
    few = Folds(entries={name: entry for name, entry in folds.entries.items() if name[0] in "AB"}, k=5)
    more = make_folds(folders, keep=few)
    assert {name: more.entries[name].fold for name in few.entries} == {
        name: entry.fold for name, entry in few.entries.items()
    }
    assert not more.divided_patients
    assert len(more.entries) == 43
    with pytest.raises(DataError, match="give k=5"):
        make_folds(folders, k=4, keep=few)


def test_existing_folds_that_divide_a_person_found_by_a_duplicate_signal_are_refused(folders):
    with pytest.raises(DataError, match=r"the existing folds have P0 in folds . and .; make new folds"):
        make_folds(folders, keep=make_folds(folders[0]))


def test_records_with_the_same_signal_are_found_by_their_headers(folders):
    data = Challenge2020(folders, **FAST)
    assert duplicate_signals(data._selected[0]) == [["A0", "B90"]]
    # B90 is of P11 in the table, so all records of P11 have the person of A0.
    assert data._persons["A0"] == data._persons["B90"] == data._persons["B11"]
    assert "the signal of another record: b/B90" in data.summary


def test_records_with_infinite_samples_have_no_duplicates(tmp_path):
    for name in ("A1", "A2"):
        write_record(tmp_path, name)
        path = tmp_path / f"{name}.hea"
        path.write_text(path.read_text().replace(" 1000.0(0)/mV", " 1e-300(0)/mV"))
    assert duplicate_signals([read_header(tmp_path / "A1.hea"), read_header(tmp_path / "A2.hea")]) == []


def test_records_that_are_too_large_for_the_memory_have_no_duplicates(folders, monkeypatch):
    def raise_memory_error(*args):
        raise MemoryError

    headers = Challenge2020(folders, **FAST)._selected[0]
    monkeypatch.setattr("kdkit_ecg.records.wfdb_record._read_16_bits", raise_memory_error)
    assert duplicate_signals(headers) == []  # they are excluded later


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"folds": 5, "shares": (0.7, 0.1, 0.2)}, RecipeError, "give one of the two"),
        ({"fold": 1, "shares": (0.7, 0.1, 0.2)}, RecipeError, "with shares there are no folds, but fold is 1"),
        ({"folds": 2}, RecipeError, "needs 3 folds or more, got 2"),
        ({"folds": np.int64(2)}, RecipeError, "needs 3 folds or more, got 2"),
        ({"folds": "nowhere.csv"}, DataError, "folds file nowhere.csv does not exist"),
        ({"fold": 5}, RecipeError, "0 to 4, got 5"),
        ({"grouping": "person"}, RecipeError, "grouping must be 'patient' or 'record'; got 'person'"),
    ],
)
def test_options_without_possible_splits_are_refused(folders, options, error, message):
    with pytest.raises(error, match=message):
        _ = Challenge2020(folders, **{**FAST, **options}).train


def test_two_folds_are_enough_without_a_separate_validation_split(folders):
    data = Challenge2020(folders, folds=2, validation_split="test", **FAST)
    assert len(data.train) + len(data.test) == 42


def test_real_records_of_one_patient_or_with_the_same_signal_are_in_one_fold(shared):
    folds = make_folds(shared / "ecg")
    assert not folds.divided_patients
    of_patient = [entry for entry in folds.entries.values() if entry.patient == "P13619"]
    assert len(of_patient) > 3
    assert len({entry.fold for entry in of_patient}) == 1
    assert folds.entries["A0101"].fold == folds.entries["Q0048"].fold
    sizes = [sum(entry.fold == fold for entry in folds.entries.values()) for fold in range(5)]
    assert max(sizes) - min(sizes) <= 4


@pytest.mark.slow
def test_the_real_records_of_both_folders_share_no_patient_between_splits(shared, tmp_path):
    with tarfile.open(shared / "ecg" / "ptb-xl_zscored_250hz.tar.xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.2 lacks it
        archive.extractall(tmp_path)
    folds = make_folds([shared / "ecg", tmp_path], normalised_units=True)
    assert len(folds.entries) > 2000
    assert not folds.divided_patients
    in_both = {entry.patient for entry in folds.entries.values() if entry.database == "ptb-xl"} & {
        entry.patient for entry in folds.entries.values() if entry.database == "ptb-xl_zscored_250hz"
    }
    assert in_both == {"P15203", "P20806"}
