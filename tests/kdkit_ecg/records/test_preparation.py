"""Preparing raises nothing, whatever a header says: what is wrong with a record is its fault."""

import numpy as np
import pytest

from kdkit_ecg.records import preparation
from kdkit_ecg.records.header import read_header
from kdkit_ecg.records.preparation import Preparation
from tests.helpers.wfdb_files import write_record

BANDS = [(0.5, 47.0), None]


def prepared(folder, *, old="", new="", **options):
    """Prepare a record of 300 samples at 500 Hz, in whose header something else is written."""
    write_record(folder, "A1")
    path = folder / "A1.hea"
    path.write_text(path.read_text().replace(old, new, 1))
    options = {"rate": 257, "band": None, "resampling": "polyphase", "scaling": "zscore", **options}
    header, way = read_header(path), Preparation(**options)
    return way.prepare(header), way.expected_time(header)


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("resampling", ["polyphase", "linear"])
@pytest.mark.parametrize("rate", ["5000000000", "90000000000000000000000", "0.001", ".00000000000000000001"])
def test_a_rate_that_no_record_has_is_a_fault(tmp_path, rate, resampling, band):
    outcome, time = prepared(tmp_path, old=" 500 ", new=f" {rate} ", resampling=resampling, band=band)
    assert (outcome.signal, outcome.fault, outcome.passing, time) == (None, "rate", False, 0)


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("rate", [1e-9, 1e300])
def test_a_rate_that_no_record_can_be_resampled_to_is_a_fault(tmp_path, rate, band):
    outcome, time = prepared(tmp_path, rate=rate, band=band)
    assert (outcome.signal, outcome.fault, time) == (None, "rate", 0)


def test_a_record_of_which_nothing_is_left_is_a_fault(tmp_path):
    assert prepared(tmp_path, rate=0.01, resampling="linear")[0].fault == "rate"


def test_what_is_expected_is_what_comes(tmp_path):
    for rate in (100, 257, 500, 1000.5):
        outcome, time = prepared(tmp_path, rate=rate)
        assert 0 <= time - outcome.signal.shape[1] <= 1


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_signal_that_is_not_finite_is_unreadable(tmp_path):
    assert prepared(tmp_path, old=" 1000.0(0)/mV", new=" 1e-300(0)/mV")[0].fault == "signal"


@pytest.mark.parametrize("step", ["read_record", "resample"])
def test_memory_that_is_short_is_a_fault_that_may_pass(tmp_path, monkeypatch, step):
    def short(*args):
        raise MemoryError

    monkeypatch.setattr(preparation, step, short)
    outcome, _ = prepared(tmp_path)
    assert (outcome.signal, outcome.passing) == (None, True)


@pytest.mark.parametrize("error", [np.linalg.LinAlgError, ValueError, OverflowError])
def test_what_scipy_raises_is_a_fault(tmp_path, monkeypatch, error):
    def singular(*args):
        raise error("singular")

    monkeypatch.setattr(preparation, "bandpass", singular)
    assert prepared(tmp_path, band=(0.5, 47.0))[0].fault == "rate"
