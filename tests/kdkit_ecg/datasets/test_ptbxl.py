"""PTBXL reads the layout, tables and folds of PTB-XL."""

import csv
import shutil

import numpy as np
import pytest
import torch

from kdkit import DataError, RecipeError
from kdkit_ecg import Challenge2020
from kdkit_ecg.datasets import PTBXL
from kdkit_ecg.records.filters import resample
from kdkit_ecg.records.header import read_header
from tests.helpers.ptbxl_files import write_database, write_signal, write_statements

RAW = {"scaling": "raw", "band": None}


def row(number, **columns):
    defaults = {"patient_id": f"{1000 + number}.0", "age": "56.0", "sex": 1, "scp_codes": "{'NORM': 100.0, 'SR': 0.0}"}
    return {"ecg_id": number, "strat_fold": 1 + number % 10, **defaults, **columns}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """20 records, two of each fold. The first three have unusual ages, sexes and statements."""
    folder = tmp_path_factory.mktemp("ptb-xl")
    write_statements(folder)
    rows = [row(number) for number in range(1, 21)]
    rows[0] |= {"age": "300.0", "scp_codes": "{'IMI': 15.0, 'LVH': 0.0, 'ABQRS': 0.0, 'AFIB': 0.0}"}
    rows[1] |= {"age": "", "sex": "", "scp_codes": "{'ISCAL': 50.0, '1AVB': 100.0, 'NDT': 100.0}"}
    rows[2] |= {"sex": 0, "age": "19", "scp_codes": "{'SR': 0.0}"}
    write_database(folder, rows)
    for number in range(1, 21):
        signal = np.random.default_rng(number).normal(0, 0.3, (12, 1000)).round(3)
        write_signal(folder, number, signal, 100)
        write_signal(folder, number, np.repeat(signal, 5, axis=1), 500)  # the 100 Hz signal, held
    return folder


@pytest.mark.parametrize(
    ("labels", "count"),
    [("superdiagnostic", 5), ("subdiagnostic", 23), ("diagnostic", 44), ("form", 19), ("rhythm", 12), ("all", 71)],
)
def test_each_kind_of_label_has_the_published_number_of_classes(folder, labels, count):
    classes = PTBXL(folder, labels=labels).classes
    assert len(classes) == len(set(classes)) == count
    assert list(classes) == sorted(classes)


def labels_of(data, number):
    """Return the classes and the person vector of a record in any split."""
    records = data._loaded[0]
    row = [header.name for header in data._selected[0]].index(f"HR{number:05}")
    return {data.classes[column] for column in records.labels[row].nonzero().flatten()}, records.person[row].tolist()


def test_statements_become_classes_whatever_their_likelihood(folder):
    assert labels_of(PTBXL(folder), 1)[0] == {"MI", "HYP"}
    assert labels_of(PTBXL(folder), 2)[0] == {"STTC", "CD"}
    assert labels_of(PTBXL(folder, labels="subdiagnostic"), 2)[0] == {"ISCA", "_AVB", "STTC"}
    assert labels_of(PTBXL(folder, labels="form"), 2)[0] == {"NDT"}
    assert labels_of(PTBXL(folder, labels="rhythm"), 1)[0] == {"AFIB"}
    assert labels_of(PTBXL(folder, labels="all"), 1)[0] == {"IMI", "LVH", "ABQRS", "AFIB"}


def test_ages_above_89_and_missing_values_are_unknown(folder):
    data = PTBXL(folder, labels="all")
    # age/100, age known, female, male, sex known
    assert labels_of(data, 1)[1] == [0, 0, 1, 0, 1]
    assert labels_of(data, 2)[1] == [0, 0, 0, 0, 0]
    assert labels_of(data, 3)[1] == pytest.approx([0.19, 1, 0, 1, 1])


def test_records_without_a_class_are_excluded_and_counted(folder):
    summary = PTBXL(folder).summary
    assert summary.startswith("19 of 20 records read\n  1 excluded, no scored code: records100/00000/00003_lr")
    assert PTBXL(folder, labels="all").summary.startswith("20 of 20 records read")


def test_fold_10_is_the_test_split_9_the_validation_split_and_the_others_are_for_training(folder):
    data = PTBXL(folder, labels="all")
    names = [header.name for header in data._selected[0]]
    folds = {number: 1 + number % 10 for number in range(1, 21)}
    splits = {}
    for name in ("train", "validation", "test"):
        ids = set(getattr(data, name).ids.tolist())
        in_split = [record for record, id in zip(names, data._loaded[0].ids.tolist(), strict=True) if id in ids]
        splits[name] = {folds[int(record[2:])] for record in in_split}
    assert splits == {"train": set(range(1, 9)), "validation": {9}, "test": {10}}
    assert len(data.train) + len(data.validation) + len(data.test) == 20


@pytest.mark.parametrize("fold", [1, 5, 10])
def test_any_fold_can_be_the_test_split_and_splits_share_no_record(folder, fold):
    data = PTBXL(folder, labels="all", fold=fold)
    train, validation, test = (set(split.ids.tolist()) for split in (data.train, data.validation, data.test))
    assert len(train) + len(validation) + len(test) == len(train | validation | test) == 20
    assert test != {*PTBXL(folder, labels="all", fold=2).test.ids.tolist()}
    same = PTBXL(folder, labels="all", fold=fold, validation_split="test")
    assert same.validation.ids.tolist() == same.test.ids.tolist()
    assert not set(same.train.ids.tolist()) & test
    assert "too optimistic" in same.notices[0]


def test_100_hz_has_files_of_its_own_and_other_rates_are_resampled_from_500_hz(folder):
    signals = {rate: PTBXL(folder, labels="all", rate=rate, **RAW)._loaded[0].signals[3] for rate in (100, 500, 250)}
    assert {rate: signal.shape for rate, signal in signals.items()} == {
        100: (12, 1000),
        500: (12, 5000),
        250: (12, 2500),
    }
    assert np.allclose(signals[100], np.random.default_rng(4).normal(0, 0.3, (12, 1000)), atol=1e-3)
    assert np.allclose(signals[250], resample(signals[500].astype(float), 500, 250), atol=1e-4)


def test_each_rate_has_a_store_which_all_kinds_of_labels_share(folder, tmp_path):
    first = PTBXL(folder, store=tmp_path)
    assert first.prepare() == (first._store.folder.path, 19)
    assert PTBXL(folder, store=tmp_path, labels="all", fold=2).prepare() == (first._store.folder.path, 1)
    assert PTBXL(folder, store=tmp_path, rate=500).prepare()[1] == 19
    mapped, in_memory = (PTBXL(folder, store=store).train.batch(range(15), 1) for store in (tmp_path, None))
    assert mapped.inputs.signal.equal(in_memory.inputs.signal)
    assert mapped.ids.equal(in_memory.ids)


def test_a_sample_is_ten_seconds_of_twelve_leads(folder):
    batch = PTBXL(folder).train.batch([0, 1], 0)
    assert batch.inputs.signal.shape == (2, 12, 1000)
    assert batch.labels.shape == (2, 5)
    assert torch.allclose(batch.inputs.signal.std(dim=2), torch.ones(2, 12), atol=0.05)


def test_real_records_in_this_layout_equal_those_of_the_challenge(shared, tmp_path):
    with (shared / "ecg" / "records.csv").open() as file:
        patient_rows = {columns["record"]: columns for columns in csv.DictReader(file)}
    paths = sorted((shared / "ecg" / "ptb-xl").glob("*.hea"))[:12]
    rows, challenge = [], tmp_path / "challenge"
    challenge.mkdir()
    for path in paths:
        patient_row, record = patient_rows[path.stem], read_header(path).read()
        number = int(path.stem[2:])
        sex = {"Male": 0, "Female": 1}[patient_row["sex"]]
        codes = "{'NORM': 100.0, 'SR': 0.0}"
        rows.append(
            row(number, patient_id=patient_row["patient"][1:], age=patient_row["age"], sex=sex, scp_codes=codes)
            | {"strat_fold": int(float(patient_row["ptbxl_fold"]))}
        )
        write_signal(tmp_path, number, record.signal, 500)
        write_signal(tmp_path, number, resample(record.signal.astype(float), 500, 100), 100)
        for part in (path, path.with_suffix(".mat")):
            (challenge / part.name).symlink_to(part)
    write_statements(tmp_path)
    write_database(tmp_path, rows)
    ours = PTBXL(tmp_path, rate=500, length=4096, **RAW)
    theirs = Challenge2020(challenge, rate=500, length=4096, shares=(1.0, 0.0, 0.0), **RAW)
    assert ours._loaded[0].ids.tolist() == theirs._loaded[0].ids.tolist()
    assert torch.equal(ours._loaded[0].person, theirs._loaded[0].person)
    for signal, expected in zip(ours._loaded[0].signals, theirs._loaded[0].signals, strict=True):
        assert np.allclose(signal, expected, atol=1e-6)
    low = PTBXL(tmp_path)
    assert (low.rate, len(low._loaded[0].signals)) == (100, 12)


def test_options_and_tables_change_the_fingerprint(folder, tmp_path):
    first = PTBXL(folder).fingerprint
    assert PTBXL(folder).fingerprint == first
    assert len({first, PTBXL(folder, labels="all").fingerprint, PTBXL(folder, fold=3).fingerprint}) == 3


def with_database(folder, tmp_path, rows):
    (tmp_path / "records100").symlink_to(folder / "records100")
    write_statements(tmp_path)
    write_database(tmp_path, rows)
    return PTBXL(tmp_path)


def test_a_record_without_a_signal_is_excluded(folder, tmp_path):
    summary = with_database(folder, tmp_path, [row(number) for number in range(1, 22)]).summary
    assert "1 excluded, no signal file: records100/00000/00021_lr" in summary


def test_a_patient_in_two_folds_is_refused(folder, tmp_path):
    rows = [row(number) for number in range(1, 21)]
    rows[4]["patient_id"] = rows[5]["patient_id"]
    with pytest.raises(DataError, match="patient 1006 in strat_fold 6 and 7"):
        _ = with_database(folder, tmp_path, rows).train


@pytest.mark.parametrize("word", ["", "nan", "NA", "Unknown"])
def test_each_record_without_a_patient_is_a_patient_of_its_own_with_a_notice(folder, tmp_path, word):
    data = with_database(
        folder, tmp_path, [row(number, patient_id=word if number < 8 else "5.0") for number in (*range(1, 9), 18)]
    )
    assert data.notices == ()
    assert len(data.train) == 7
    assert data.notices == ("the patient of 7 of 9 records is unknown; each counts as a separate patient",)
    assert [data._person(header) for header in data._selected[0]][-3:] == ["record HR00007", "5", "5"]


def test_suffixes_in_capitals_are_read(folder, tmp_path):
    (tmp_path / "records100").mkdir()
    shutil.copytree(folder / "records100", tmp_path / "records100", dirs_exist_ok=True)
    for path in [*tmp_path.rglob("*.hea"), *tmp_path.rglob("*.dat")]:
        path.rename(path.with_suffix(path.suffix.upper()))
    write_statements(tmp_path)
    write_database(tmp_path, [row(number) for number in range(1, 21)])
    assert PTBXL(tmp_path).summary.startswith("20 of 20 records read")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"scp_codes": "NORM"}, "ecg_id '1', cannot be read"),
        ({"scp_codes": "['NORM']"}, "expected scp_codes in the form"),
        ({"strat_fold": "ten"}, "ecg_id '1', cannot be read"),
        ({"strat_fold": "inf"}, "a number from 1 to 10 in strat_fold, got 'inf'"),
        ({"strat_fold": "1" * 5000}, "a number from 1 to 10 in strat_fold, got '111"),
        ({"strat_fold": "\u0661"}, "a number from 1 to 10 in strat_fold"),
        ({"strat_fold": 11}, "a number from 1 to 10 in strat_fold, got '11'"),
        ({"scp_codes": "{" * 9000}, "ecg_id '1', cannot be read"),
        ({"scp_codes": "-" * 9000 + "1"}, "ecg_id '1', cannot be read"),
        ({"scp_codes": "{[]: 1}"}, "ecg_id '1', cannot be read"),
        ({"scp_codes": "1" * 10_001}, "scp_codes of at most 10,000 characters, got 10,001"),
        ({"filename_lr": "../../records/1"}, "the path of a record in the folder of the table, got '../../records/1'"),
        ({"filename_hr": "/etc/1"}, "the path of a record in the folder of the table, got '/etc/1'"),
        ({"ecg_id": "\u0661"}, "expected a number of up to 9 digits"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(folder, tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        _ = with_database(folder, tmp_path, [row(1, **columns)]).train


def test_two_rows_of_a_record_have_to_be_equal(folder, tmp_path):
    windows = {"filename_lr": "records100\\00000\\00001_lr"}
    data = with_database(folder, tmp_path, [row(1, **windows), *(row(number) for number in (*range(2, 21), 2))])
    assert data.summary.startswith("20 of 20 records read")
    write_database(tmp_path, [row(1), row(1, strat_fold=3)])
    with pytest.raises(DataError, match="ecg_id '1', cannot be read: it has another, different row; remove one"):
        _ = PTBXL(tmp_path).train


def test_a_folder_without_the_tables_is_refused_with_the_expected_content(tmp_path):
    data = PTBXL(tmp_path)
    with pytest.raises(DataError, match=r"scp_statements\.csv does not exist; the folder of PTB-XL contains"):
        _ = data.classes
    (tmp_path / "ptbxl_database.csv").write_text("ecg_id,age\n1,50\n")
    write_statements(tmp_path)
    with pytest.raises(DataError, match="lacks the column filename_hr; it has ecg_id, age"):
        _ = data.train


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fold": 11}, "must be one of 1 to 10"),
        ({"fold": 0}, "must be one of 1 to 10"),
        ({"labels": "superdiagnostics"}, "labels must be 'superdiagnostic' or .*; got 'superdiagnostics'"),
    ],
)
def test_unknown_option_values_are_refused(folder, options, message):
    with pytest.raises(RecipeError, match=message):
        PTBXL(folder, **options)
