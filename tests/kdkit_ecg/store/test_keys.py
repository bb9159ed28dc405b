"""Keys of stores and fingerprints: options count by value, records by header and state of their files."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from kdkit_ecg import Challenge2020
from kdkit_ecg.records.header import read_header
from kdkit_ecg.records.preparation import Preparation
from tests.helpers.wfdb_files import write_record


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        write_record(tmp_path / "records", f"A{number}", noise=number)
    return tmp_path / "records"


def data(folder, **options):
    options = {"scaling": "raw", "band": None, **options}
    return Challenge2020(folder, length=128, shares=(1.0, 0.0, 0.0), **options)


def signals(dataset):
    return [signal.tobytes() for signal in dataset.train.signals]


def edit_headers(folder, old, new):
    """Replace a text in all headers."""
    for path in folder.glob("*.hea"):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


def test_headers_replaced_after_they_were_read_do_not_affect_later_runs(folder):
    edit_headers(folder, " 12 500 ", " 12 250 ")
    early = data(folder)
    assert early._selected
    edit_headers(folder, " 12 250 ", " 12 500 ")
    # The parsed header has the old rate, so these signals are wrong for the new one.
    wrong_signals = signals(early)
    assert signals(data(folder)) == signals(data(folder, store=None)) != wrong_signals
    assert data(folder).fingerprint != early.fingerprint


def test_a_record_whose_header_is_replaced_during_preparation_is_not_stored(folder, monkeypatch):
    edited, original = [], Preparation.prepare

    def prepare(self, header):
        if not edited:
            edit_headers(folder, " 1000.0(0)/mV", " 500.0(0)/mV")
            edited.append(header)
        return original(self, header)

    monkeypatch.setattr(Preparation, "prepare", prepare)
    first_signals = signals(data(folder))  # of the parsed headers, whatever is on the disk now
    changed_signals = signals(data(folder, store=None))
    edit_headers(folder, " 500.0(0)/mV", " 1000.0(0)/mV")
    assert data(folder).prepare()[1] == 3  # none of them was stored
    assert signals(data(folder)) == signals(data(folder, store=None)) == first_signals != changed_signals


def test_equal_files_in_two_folders_are_two_records(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "A0.dat").write_bytes((folder / "A1.dat").read_bytes())
    shutil.copystat(folder / "A0.dat", copy / "A0.dat")
    rows = data([folder, copy])._store.prepare([read_header(root / "A0.hea") for root in (folder, copy)]).rows
    assert len(set(rows["content"].tolist())) == 2


def test_name_person_and_codes_do_not_change_the_key_of_a_record(folder):
    assert data(folder).prepare()[1] == 3
    headers = [read_header(path) for path in sorted(folder.glob("*.hea"))]
    renamed = [replace(header, name=f"HR{row}", age=None, sex=None, codes=()) for row, header in enumerate(headers)]
    assert data(folder)._store.prepare(renamed).prepared == 0


def test_equal_numbers_of_any_type_have_one_store_and_one_fingerprint(folder):
    equal = (
        {"rate": 257, "band": (0.5, 47.0)},
        {"rate": 257.0, "band": [0.5, 47]},
        {"rate": np.float64(257), "band": (np.float32(0.5), np.int64(47))},
    )
    datasets = [data(folder, **options) for options in equal]
    assert len({dataset._store.folder.path for dataset in datasets}) == 1
    assert len({dataset.fingerprint for dataset in datasets}) == 1
    assert data(folder, rate=257.5, band=(0.5, 47.0))._store.folder.path != datasets[0]._store.folder.path
