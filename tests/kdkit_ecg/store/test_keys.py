"""What a store and a fingerprint are told apart by: options by their value, records by what was read of them."""

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


def signals(of):
    return [signal.tobytes() for signal in of.train.signals]


def turn(folder, old, new):
    """Write something else into the headers."""
    for path in folder.glob("*.hea"):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))


def test_headers_that_are_replaced_after_they_were_read_spoil_no_later_run(folder):
    turn(folder, " 12 500 ", " 12 250 ")
    early = data(folder)
    assert early._found
    turn(folder, " 12 250 ", " 12 500 ")
    wrong = signals(early)
    assert signals(data(folder)) == signals(data(folder, store=None)) != wrong
    assert data(folder).fingerprint != early.fingerprint


def test_a_record_whose_header_is_replaced_while_it_is_prepared_is_not_kept(folder, monkeypatch):
    turned, really = [], Preparation.prepare

    def prepare(self, header):
        if not turned:
            turn(folder, " 1000.0(0)/mV", " 500.0(0)/mV")
            turned.append(header)
        return really(self, header)

    monkeypatch.setattr(Preparation, "prepare", prepare)
    wrong = signals(data(folder))
    turn(folder, " 500.0(0)/mV", " 1000.0(0)/mV")
    assert signals(data(folder)) == signals(data(folder, store=None)) != wrong


def test_files_that_are_alike_in_two_folders_are_two_records(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "A0.dat").write_bytes((folder / "A1.dat").read_bytes())
    shutil.copystat(folder / "A0.dat", other / "A0.dat")
    rows = data([folder, other])._store.filled([read_header(root / "A0.hea") for root in (folder, other)]).rows
    assert len(set(rows["content"].tolist())) == 2


def test_what_is_said_of_the_person_and_the_name_makes_no_other_record(folder):
    assert data(folder).prepare()[1] == 3
    headers = [read_header(path) for path in sorted(folder.glob("*.hea"))]
    other = [replace(header, name=f"HR{at}", age=None, sex=None, codes=()) for at, header in enumerate(headers)]
    assert data(folder)._store.filled(other).came == 0


def test_numbers_that_are_equal_are_one_store_and_one_fingerprint(folder):
    equal = (
        {"rate": 257, "band": (0.5, 47.0)},
        {"rate": 257.0, "band": [0.5, 47]},
        {"rate": np.float64(257), "band": (np.float32(0.5), np.int64(47))},
    )
    found = [data(folder, **options) for options in equal]
    assert len({each._store.place.path for each in found}) == len({each.fingerprint for each in found}) == 1
    assert data(folder, rate=257.5, band=(0.5, 47.0))._store.place.path != found[0]._store.place.path
