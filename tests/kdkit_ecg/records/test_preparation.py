"""Preparation raises no exception for any record: a record that cannot be prepared has a fault."""

import numpy as np
import pytest

from kdkit_ecg.records import preparation
from kdkit_ecg.records.header import read_header
from kdkit_ecg.records.preparation import Preparation
from kdkit_ecg.records.wfdb_record import Header
from tests.helpers.wfdb_files import write_record, write_signals

BANDS = [(0.5, 47.0), None]


def prepare_record(folder, *, old="", new="", **options):
    """Prepare a record of 300 samples at 500 Hz, with `old` replaced by `new` in its header."""
    write_record(folder, "A1")
    path = folder / "A1.hea"
    path.write_text(path.read_text().replace(old, new, 1))  # replaces nothing if both are empty
    options = {"rate": 257, "band": None, "resampling": "polyphase", "scaling": "zscore", **options}
    header, preparation_of_test = read_header(path), Preparation(**options)
    return preparation_of_test.prepare(header), preparation_of_test.expected_samples(header)


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("resampling", ["polyphase", "linear"])
@pytest.mark.parametrize("rate", ["5000000000", "90000000000000000000000", "0.001", ".00000000000000000001"])
def test_an_impossible_rate_in_the_header_is_a_fault(tmp_path, rate, resampling, band):
    prepared, samples = prepare_record(tmp_path, old=" 500 ", new=f" {rate} ", resampling=resampling, band=band)
    assert (prepared.signal, prepared.fault, prepared.transient, samples) == (None, "rate", False, 0)


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("rate", [1e-9, 1e300])
def test_an_impossible_target_rate_is_a_fault(tmp_path, rate, band):
    prepared, samples = prepare_record(tmp_path, rate=rate, band=band)
    assert (prepared.signal, prepared.fault, samples) == (None, "rate", 0)


def test_a_record_without_a_sample_after_resampling_is_a_fault(tmp_path):
    assert prepare_record(tmp_path, rate=0.01, resampling="linear")[0].fault == "rate"


def test_the_expected_number_of_samples_is_right(tmp_path):
    for rate in (100, 257, 500, 1000.5):
        prepared, samples = prepare_record(tmp_path, rate=rate)
        assert 0 <= samples - prepared.signal.shape[1] <= 1


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_signal_that_is_not_finite_is_unreadable(tmp_path):
    assert prepare_record(tmp_path, old=" 1000.0(0)/mV", new=" 1e-300(0)/mV")[0].fault == "signal"


@pytest.mark.parametrize("scaling", ["zscore", "raw"])
@pytest.mark.parametrize("band", BANDS)
def test_a_record_whose_selected_leads_are_all_flat_is_a_fault(tmp_path, band, scaling):
    signal = np.full((300, 12), 1.5)
    signal[::2, 6] = 0  # V1 has a signal
    write_signals(tmp_path, "A1", signal, rate=500)
    header, options = read_header(tmp_path / "A1.hea"), {"band": band, "resampling": "polyphase", "scaling": scaling}
    assert Preparation(rate=257, **options).prepare(header).fault is None
    assert Preparation(rate=257, **options, leads=("I", "III")).prepare(header).fault == "flat"


@pytest.mark.parametrize(("owner", "step"), [(Header, "read"), (preparation, "resample")])
def test_a_lack_of_memory_is_a_transient_fault(tmp_path, monkeypatch, owner, step):
    def raise_memory_error(*args):
        raise MemoryError

    monkeypatch.setattr(owner, step, raise_memory_error)
    prepared, _ = prepare_record(tmp_path)
    assert (prepared.signal, prepared.transient) == (None, True)


@pytest.mark.parametrize("error", [np.linalg.LinAlgError, ValueError, OverflowError])
def test_an_exception_of_scipy_is_a_fault(tmp_path, monkeypatch, error):
    def raise_error(*args):
        raise error("singular")

    monkeypatch.setattr(preparation, "bandpass", raise_error)
    assert prepare_record(tmp_path, band=(0.5, 47.0))[0].fault == "rate"


@pytest.mark.parametrize("scaling", ["zscore", "raw"])
@pytest.mark.parametrize("resampling", ["polyphase", "linear"])
def test_a_large_signal_is_prepared_lead_by_lead_to_the_same_bits(tmp_path, monkeypatch, resampling, scaling):
    options = {"resampling": resampling, "scaling": scaling, "band": (0.5, 47.0)}
    together = prepare_record(tmp_path, **options)[0].signal
    monkeypatch.setattr(preparation, "_LARGE", 100)
    assert np.array_equal(prepare_record(tmp_path, **options)[0].signal, together)
