"""Samples are read in converter steps, and compared with the first samples and checksums in the header."""

import numpy as np
import pytest
import scipy.io
import wfdb

from kdkit import DataError
from kdkit_ecg.leads import LEADS
from kdkit_ecg.records.header import read_header
from kdkit_ecg.records.preparation import Preparation
from kdkit_ecg.records.wfdb_record import ChecksumError, read_steps
from tests.helpers.wfdb_files import checksum, write_matrix


def steps(seed=0, time=600):
    return np.random.default_rng(seed).integers(-800, 800, (12, time))


def test_a_matrix_that_scipy_saved_again_is_refused(tmp_path):
    path = write_matrix(tmp_path, "A1", steps())
    scipy.io.savemat(path.with_suffix(".mat"), {"val": steps().astype("<i2")})  # MATLAB 5 by default, not 4
    with pytest.raises(
        ChecksumError, match=r"A1\.hea do not match the first samples and checksums in it \(leads I, II"
    ):
        read_header(path).read()


def test_a_web_page_in_place_of_the_signal_is_refused(tmp_path):
    path = write_matrix(tmp_path, "A1", steps())
    path.with_suffix(".mat").write_bytes(b"<html>" + b"x" * 30000)
    with pytest.raises(ChecksumError):
        read_header(path).read()


def test_the_samples_of_another_record_are_refused(tmp_path):
    path, another = write_matrix(tmp_path, "A1", steps()), write_matrix(tmp_path, "A2", steps(1))
    another.with_suffix(".mat").replace(path.with_suffix(".mat"))
    with pytest.raises(ChecksumError):
        read_header(path).read()


def test_one_damaged_sample_in_one_lead_is_refused_with_the_lead(tmp_path):
    path = write_matrix(tmp_path, "A1", steps())
    raw = bytearray(path.with_suffix(".mat").read_bytes())
    raw[24 + 2 * (12 * 300 + 4)] ^= 1  # the low byte of sample 300 of the fifth lead
    path.with_suffix(".mat").write_bytes(raw)
    with pytest.raises(ChecksumError, match=r"\(leads aVL\)"):
        read_header(path).read()


def test_a_lead_with_a_checksum_of_0_is_compared_if_other_leads_have_checksums(tmp_path):
    samples = steps()
    samples[3] = 0
    path = write_matrix(tmp_path, "A1", samples)
    assert read_header(path).read().signal.shape == (12, 600)
    samples[3, 5] = 1
    path.with_suffix(".mat").write_bytes(bytes(24) + samples.T.astype("<i2").tobytes())
    with pytest.raises(ChecksumError, match=r"\(leads aVR\)"):
        read_header(path).read()


def test_checksums_of_0_in_all_leads_are_unknown_and_the_first_samples_are_compared(tmp_path):
    path = write_matrix(tmp_path, "A1", steps(), checks=lambda lead: (lead[0], 0))
    assert read_header(path).read().signal.shape == (12, 600)
    path.with_suffix(".mat").write_bytes(bytes(24) + np.roll(steps(), 1, axis=1).T.astype("<i2").tobytes())
    with pytest.raises(ChecksumError):
        read_header(path).read()


def test_a_header_without_first_samples_and_checksums_fits_any_samples(tmp_path):
    path = write_matrix(tmp_path, "A1", steps(), checks=lambda lead: (0, 0))
    path.with_suffix(".mat").write_bytes(bytes(24) + steps(1).T.astype("<i2").tobytes())
    assert read_header(path).read().signal.shape == (12, 600)


def test_a_checksum_that_is_0_for_these_samples_matches(tmp_path):
    samples = steps()
    samples[3, -1] -= samples[3].sum()
    assert checksum(samples[3]) == 0
    # The checksum decides, so a first sample of another program does not matter.
    path = write_matrix(tmp_path, "A1", samples, checks=lambda lead: (lead[0] + 1, checksum(lead)))
    assert read_header(path).read().signal.shape == (12, 600)


def test_a_checksum_without_a_sign_is_the_same_checksum(tmp_path):
    path = write_matrix(tmp_path, "A1", steps(), checks=lambda lead: (lead[0], checksum(lead) % 65536))
    assert read_header(path).read().signal.shape == (12, 600)


def test_a_mismatch_is_a_lasting_fault_of_the_preparation(tmp_path):
    path = write_matrix(tmp_path, "A1", steps())
    path.with_suffix(".mat").write_bytes(b"x" * 30000)
    prepared = Preparation(rate=257, band=None, resampling="polyphase", scaling="zscore").prepare(read_header(path))
    assert (prepared.signal, prepared.fault, prepared.transient) == (None, "checksum", False)


def test_steps_are_the_integers_in_the_file(tmp_path):
    header = read_header(write_matrix(tmp_path, "A1", steps()))
    assert header.leads == LEADS
    assert np.array_equal(read_steps(header), steps())
    (tmp_path / "A1.mat").write_bytes(bytes(100))
    with pytest.raises(DataError, match=r"the signal of .*A1\.hea cannot be read"):
        read_steps(header)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("16+24", "16:50000000+24", "a channel starts at frame 50,000,000 of 600"),
        ("500 600", "500 600000000", "expected 7,200,000,000"),
        ("16+24", "16x50000000+24", "expected 360,000,000,000"),
        ("16+24", "16+1000000", r"A1\.mat has [0-9,]+ bytes, which hold at most 0 samples"),
        ("500 600", "500 99999999999", "A1.mat has .* bytes"),
        ("16+24", "310", "hold at most .* samples"),
        ("16+24", "516", "expected 1,200,000,000,000"),
        ("16+24", "999", "format 999, which is not one of WFDB"),
    ],
)
def test_a_header_cannot_request_more_memory_than_the_file_needs(tmp_path, monkeypatch, old, new, message):
    monkeypatch.setattr(wfdb, "rdrecord", lambda *_, **__: pytest.fail("wfdb would allocate the memory"))
    path = write_matrix(tmp_path, "A1", np.arange(7200).reshape(12, 600))
    text = path.read_text().replace(old, new)
    if new in ("310", "516"):
        text = text.replace("500 600", "500 100000000000")
    path.write_text(text)
    with pytest.raises(DataError, match=rf"the signal of .*A1\.hea .*{message}"):
        read_steps(read_header(path))


def test_a_skew_within_the_record_shifts_a_channel(tmp_path):
    path = write_matrix(tmp_path, "A1", np.arange(7200).reshape(12, 600), checks=lambda lead: (0, 0))
    path.write_text(path.read_text().replace("16+24", "16:599+24", 1))
    steps = read_steps(read_header(path))
    assert (steps[0, 0], steps[1, 0]) == (599, 600)
    assert (steps[0, 1:] == -(1 << 15)).all()


def test_samples_of_16_bits_are_those_that_wfdb_reads(tmp_path):
    name = "A1"
    steps = np.random.default_rng(0).integers(-(1 << 15), 1 << 15, (5, 300))
    steps[:, 7] = -(1 << 15)  # the invalid value
    order = ([0, 2, 1], [3, 4])  # channels of two files take turns in the header
    for number, rows in enumerate(order):
        (tmp_path / f"{name}{number}.dat").write_bytes(bytes(24 * number) + steps[rows].T.astype("<i2").tobytes())
    lines = [f"{name}0.dat 16 1000/mV 16 0 0 0 0 {lead}" for lead in "abc"]
    lines[1:1] = [f"{name}1.dat 16+24 1000/mV 16 0 0 0 0 {lead}" for lead in "de"]
    (tmp_path / f"{name}.hea").write_text("\n".join([f"{name} 5 500 300", *lines, ""]))
    header = read_header(tmp_path / f"{name}.hea")
    assert np.array_equal(read_steps(header), steps[[0, 3, 4, 2, 1]])
    # wfdb expects the channels of a file in a row.
    lines[3:3] = [lines.pop(1), lines.pop(1)]
    (tmp_path / f"{name}.hea").write_text("\n".join([f"{name} 5 500 300", *lines, ""]))
    theirs = wfdb.rdrecord(str(tmp_path / name), physical=False)
    assert np.array_equal(read_steps(read_header(tmp_path / f"{name}.hea")), theirs.d_signal.T)
