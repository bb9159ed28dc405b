"""WFDB records written by wfdb are read back with signal, leads, person and codes."""

import numpy as np
import pytest
import wfdb

from kdkit import DataError
from kdkit_ecg.leads import LEADS
from kdkit_ecg.person import person_vector
from kdkit_ecg.records.header import read_header
from tests.helpers.wfdb_files import write_signals

COMMENTS = ["Age: 61", "Sex: Female", "Dx: 426783006,164889003"]


def wave(leads, time=1000):
    return np.random.default_rng(len(leads)).normal(0, 0.5, (time, len(leads))).round(3)


def write_with_wfdb(folder, name="R1", *, leads=LEADS, signal=None, units="mV", comments=COMMENTS, fmt="16"):
    signal = wave(leads) if signal is None else signal
    per_unit = {"mV": 1000.0, "uV": 1.0, "nV": 1e-3, "V": 1e6, "NU": 1000.0}[units]
    wfdb.wrsamp(
        name,
        fs=500,
        units=[units] * len(leads),
        sig_name=list(leads),
        p_signal=signal,
        fmt=[fmt] * len(leads),
        adc_gain=[per_unit] * len(leads),
        baseline=[0] * len(leads),
        comments=list(comments),
        write_dir=str(folder),
    )
    return folder / f"{name}.hea"


def test_the_helper_of_the_tests_writes_the_bytes_of_wfdb(tmp_path):
    (tmp_path / "wfdb").mkdir()
    header = write_with_wfdb(tmp_path / "wfdb")
    write_signals(tmp_path / "helper", "R1", wave(LEADS), rate=500, comments=COMMENTS)
    for suffix in (".hea", ".dat"):
        assert (tmp_path / f"helper/R1{suffix}").read_bytes() == header.with_suffix(suffix).read_bytes()


def test_a_record_has_a_float32_signal_in_mv_with_person_and_codes(tmp_path):
    record = read_header(write_with_wfdb(tmp_path)).read()
    assert record.signal.dtype == np.float32
    assert np.allclose(record.signal, wave(LEADS).T, atol=1e-6)
    assert (record.name, record.rate, record.leads) == ("R1", 500, LEADS)
    assert (record.age, record.sex, record.codes) == (61, "female", ("426783006", "164889003"))
    assert np.allclose(record.person, [0.61, 1, 1, 0, 1])


def test_leads_are_sorted_whatever_order_and_case_the_header_has(tmp_path):
    mixed = ("V6", "AVF", "i", "v1", "ii", "iii", "avr", "AVL", "V2", "V5", "V4", "V3", "vx")
    record = read_header(write_with_wfdb(tmp_path, leads=mixed)).read()
    assert record.leads == (*LEADS, "vx")
    assert np.allclose(record.signal[0], wave(mixed)[:, 2], atol=1e-6)
    assert np.allclose(record.signal[12], wave(mixed)[:, 12], atol=1e-6)


@pytest.mark.parametrize("leads", [("II", "I"), ("V2", "II", "I"), LEADS[:6]])
def test_records_with_fewer_leads_are_read(tmp_path, leads):
    record = read_header(write_with_wfdb(tmp_path, leads=leads)).read()
    assert record.leads == tuple(sorted(leads, key=LEADS.index))
    assert record.signal.shape == (len(leads), 1000)


@pytest.mark.parametrize(("units", "per_mv"), [("uV", 1e3), ("nV", 1e6), ("V", 1e-3)])
def test_microvolts_nanovolts_and_volts_become_millivolts(tmp_path, units, per_mv):
    path = write_with_wfdb(tmp_path, signal=wave(LEADS) * per_mv, units=units)
    assert np.allclose(read_header(path).read().signal, wave(LEADS).T, atol=1e-3)
    assert read_header(path).gains == pytest.approx((1000.0,) * 12)


def test_a_gain_that_wfdb_chose_for_volts_in_32_bits_is_read(tmp_path):
    options = {"units": ["V"] * 12, "sig_name": list(LEADS), "fmt": ["32"] * 12, "write_dir": str(tmp_path)}
    wfdb.wrsamp("R1", fs=500, p_signal=wave(LEADS) / 1000, **options)  # some 1e12 steps per V
    assert np.allclose(read_header(tmp_path / "R1.hea").read().signal, wave(LEADS).T)


def test_a_micro_sign_in_any_encoding_means_microvolts(tmp_path):
    path = write_with_wfdb(tmp_path, signal=wave(LEADS) * 1000, units="uV")
    text = path.read_text(encoding="ascii").replace("/uV", "/\u00b5V")
    for encoding in ("utf-8", "latin-1"):
        path.write_text(text, encoding=encoding)
        assert np.allclose(read_header(path).read().signal, wave(LEADS).T, atol=1e-3)


def test_normalised_units_are_flagged(tmp_path):
    assert read_header(write_with_wfdb(tmp_path, units="NU")).read().normalised
    assert not read_header(write_with_wfdb(tmp_path, "R2")).read().normalised


def test_invalid_samples_are_interpolated_linearly(tmp_path):
    signal = wave(LEADS)
    # wfdb writes NaN as the invalid value of the format.
    signal[100:103, 0] = np.nan
    signal[:10, 1] = np.nan
    signal[:, 2] = np.nan
    interpolated = read_header(write_with_wfdb(tmp_path, signal=signal)).read().signal
    assert np.allclose(interpolated[0, 99:104], np.linspace(signal[99, 0], signal[103, 0], 5), atol=1e-6)
    assert np.allclose(interpolated[1, :10], signal[10, 1], atol=1e-6)
    assert not interpolated[2].any()


def test_formats_other_than_16_bits_are_read(tmp_path):
    assert np.allclose(read_header(write_with_wfdb(tmp_path, fmt="24")).read().signal, wave(LEADS).T, atol=1e-6)


def test_a_record_name_with_a_suffix_is_read_like_one_without(tmp_path):
    path = write_with_wfdb(tmp_path)
    path.write_text(path.read_text().replace("R1 12", "R1.mat 12", 1))
    record = read_header(path).read()
    assert record.name == "R1"
    assert np.allclose(record.signal, wave(LEADS).T, atol=1e-6)


def test_a_header_agrees_with_wfdb(tmp_path):
    path = write_with_wfdb(tmp_path)
    ours, theirs = read_header(path), wfdb.rdheader(str(path.with_suffix("")))
    assert (ours.rate, ours.samples, list(ours.leads)) == (theirs.fs, theirs.sig_len, theirs.sig_name)
    assert (list(ours.gains), list(ours.baselines)) == (theirs.adc_gain, theirs.baseline)


def test_a_missing_signal_file_is_named(tmp_path):
    path = write_with_wfdb(tmp_path)
    path.with_suffix(".dat").unlink()
    with pytest.raises(DataError, match=r"R1\.hea names the signal file R1\.dat"):
        read_header(path).read()


def test_a_signal_file_cut_short_is_refused(tmp_path):
    path = write_with_wfdb(tmp_path)
    complete = path.with_suffix(".dat").read_bytes()
    path.with_suffix(".dat").write_bytes(complete[: len(complete) // 2])
    with pytest.raises(DataError, match=r"R1\.hea"):
        read_header(path).read()


def test_an_unknown_unit_is_refused(tmp_path):
    path = write_with_wfdb(tmp_path)
    path.write_text(path.read_text().replace("/mV", "/mmHg"))
    with pytest.raises(DataError, match="'mmHg' is not a supported unit"):
        read_header(path).read()


@pytest.mark.parametrize("comments", [["Age: 300"], ["Age: -1"], ["Age: NaN"], ["Age: 33", "Age: 36"], ["Sex: ?"]])
def test_impossible_and_contradictory_values_are_unknown(tmp_path, comments):
    record = read_header(write_with_wfdb(tmp_path, comments=comments)).read()
    assert record.age is None
    assert record.sex is None
    assert not record.person.any()


@pytest.mark.parametrize("sex", ["F", "w", "weiblich"])
def test_an_age_and_a_sex_may_be_in_one_comment(tmp_path, sex):
    record = read_header(write_with_wfdb(tmp_path, comments=[f"<age>: 65.0 <sex>: {sex} <diagnoses> (none)"])).read()
    assert (record.age, record.sex) == (65, "female")


def test_a_newborn_has_a_known_age():
    assert person_vector(0.0, "male").tolist() == [0, 1, 0, 1, 1]
